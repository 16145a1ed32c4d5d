"""Gold answers are what the file holds, whatever its kind and the type of the column."""

import csv
import gzip
import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from command_line import run
from dynts.errors import DyntsError
from dynts.grading.compare import is_correct
from dynts.store.cells import cell_text
from dynts.store.data_files import file_rows
from dynts.traces.benchmarks import resolve_benchmark
from dynts.traces.problems import read_problems, survey
from dynts.traces.source import ProblemSource
from dynts.traces.traces import read_traces
from shared_data import BENCHMARKS

MIXED = ("007", "8", "null", "1e-05", "NaN", "0.00001", "10000000000000000", "1.50")
"""Texts that guessing turns into 7, None, 1e-05, nan, 1e16 and 1.5."""


def golds(path: Path, **columns: Any) -> list[str]:
    return [problem.answer for problem in read_problems(ProblemSource(str(path), **columns))]


def parquet(path: Path, answers: pyarrow.Array, **options: Any) -> Path:
    table = pyarrow.table({"question": [f"q{number}" for number in range(len(answers))], "answer": answers})
    pyarrow.parquet.write_table(table, path, **options)
    return path


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("datasets", reason="data sets need datasets: pip install 'dynts-kv[collect]'")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_text_stays_the_text_it_is(ending: str, folder: bool, tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "answer": answer} for number, answer in enumerate(MIXED)]
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / f"train.{ending}"
    match ending:
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "json":
            path.write_text(json.dumps(rows, indent=1))
        case "csv":
            with path.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, ["question", "answer"])
                writer.writeheader()
                writer.writerows(rows)
        case _:
            parquet(path, pyarrow.array(MIXED))
    assert golds(path.parent if folder else path) == list(MIXED)


@pytest.mark.usefixtures("datasets")
@pytest.mark.parametrize("folder", [False, True])
def test_numbers_of_json_keep_their_digits(folder: bool, tmp_path: Path) -> None:
    numbers = ["0.00001", "1e-5", "1.6e-19", "1e16", "1.50", "0.1234567890123456789", "12345678901234567890123", "-0.5"]
    plain = ["0.00001", "0.00001", "0.00000000000000000016", "10000000000000000", *numbers[4:]]
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.jsonl"
    lines = [f'{{"question": "q{index}", "answer": {number}}}' for index, number in enumerate(numbers)]
    # what has no text, and mixed types, which stop `datasets`
    lines += [
        '{"question": "a", "answer": null}',
        '{"question": "b", "answer": NaN}',
        '{"question": "c", "answer": ""}',
    ]
    lines += ['{"question": "t", "answer": "text"}', '{"question": "l", "answer": ["\\\\pi"]}']
    path.write_text("\n".join(lines))
    dataset = path.parent if folder else path
    assert golds(dataset) == [*plain, "text", "\\pi"]
    assert survey(ProblemSource(str(dataset))).without_gold == 3


def test_traces_and_imports_write_numbers_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text('{"question": "q", "response": "r", "answer": 0.00001, "id": 7, "level": 1e-05, "note": NaN}\n')
    [trace] = read_traces(path)
    assert (trace.id, trace.answer, trace.columns) == ("7", "0.00001", {"level": "0.00001"})


def test_the_written_number_is_graded_as_that_number() -> None:
    """Math-Verify takes 1e-05 for e minus 5."""
    gold = cell_text(1e-05, "here")
    assert gold is not None
    assert is_correct("\\boxed{0.00001}", gold) is True
    assert is_correct("\\boxed{e-5}", gold) is False


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (pyarrow.array([7, None, -8], pyarrow.int32()), ["7", "-8"]),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), ["18446744073709551615"]),
        (pyarrow.array([1e-05, 1e16, float("nan"), None, 0.5]), ["0.00001", "10000000000000000", "0.5"]),
        (pyarrow.array([0.1, 1e-05, float("nan")], pyarrow.float32()), ["0.1", "0.00001"]),
        (pyarrow.array([np.float16(0.1)], pyarrow.float16()), ["0.1"]),
        (pyarrow.array([Decimal("0.0000001"), Decimal("5")], pyarrow.decimal128(20, 7)), ["0.0000001", "5.0000000"]),
        (pyarrow.array([True, False]), ["true", "false"]),
        (pyarrow.array([date(2026, 11, 28)]), ["2026-11-28"]),
        (pyarrow.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pyarrow.array([["x"], [], None]), ["x"]),
        (pyarrow.nulls(2), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pyarrow.Array) else "",
)
def test_columns_of_parquet(answers: pyarrow.Array, expected: list[str] | None, tmp_path: Path) -> None:
    path = parquet(tmp_path / "problems.parquet", answers)
    if expected is None:
        with pytest.raises(DyntsError, match=r"no problems with a gold answer \(2 rows without\)"):
            survey(ProblemSource(str(path)))
        return
    assert golds(path) == expected
    assert survey(ProblemSource(str(path))).without_gold == len(answers) - len(expected)


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (pyarrow.array([["a"], ["b", "c"]]), "row 1: column 'answer' must be one text or number, got a list of 2"),
        (pyarrow.array([None, {"value": 1}]), "row 1: column 'answer' .* got an object"),
        (pyarrow.array([None, b"7"]), "row 1: column 'answer' .* got bytes"),
        (pyarrow.array([1.0, float("inf")]), "row 1: column 'answer' holds the number Infinity"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_row(
    answers: pyarrow.Array, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = parquet(tmp_path / "problems.parquet", answers)
    with pytest.raises(DyntsError, match=problem):
        survey(ProblemSource(str(path)))
    with pytest.raises(DyntsError, match=problem):
        survey(resolve_benchmark(str(path)).source)
    code, _, err = run(monkeypatch, capsys, "collect", "--model", "none", "--dataset", path, "--out", tmp_path / "out")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "row 1" in err


@pytest.mark.parametrize("checksums", [False, True])
def test_no_flipped_byte_of_a_parquet_file_passes_as_a_traceback(checksums: bool, tmp_path: Path) -> None:
    """With checksums every changed problem is found; without them, what cannot be read is named."""
    answers = pyarrow.array([f"ä{number}" for number in range(40)])
    whole = parquet(tmp_path / "whole.parquet", answers, write_page_checksum=checksums, row_group_size=20)
    rows = [row for _, row in file_rows(whole)]
    content = whole.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    named: set[str] = set()
    damaged = tmp_path / "damaged.parquet"
    for place in range(4, len(content) - 8, 7):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0xA5]) + content[place + 1 :])
        try:
            found = [row for _, row in file_rows(damaged)]
        except DyntsError as error:
            named.add(str(error).partition(":")[0])
        else:
            if checksums and place < footer:
                assert found == rows, place
    assert named == {f"cannot read {damaged}{part}" for part in ("", ", row group 0", ", row group 1")}


def test_bytes_that_are_no_utf8_are_named_without_checksums(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "whole.parquet", pyarrow.array(["plain", "später"]), compression="none")
    content = whole.read_bytes()
    assert content.count("später".encode()) >= 1
    whole.write_bytes(content.replace("später".encode(), b"sp\xff\xffter"))
    with pytest.raises(DyntsError, match=r"whole\.parquet, row group 0: .*utf-8.*download or make it again"):
        survey(ProblemSource(str(whole)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("question,answer\nq,1,2\n", "line 2: 3 cells under a header of 2"),
        ('question,answer\n"two\nlines",1\nq\n', "line 4: 1 cells under a header of 2"),
        ("question,question\nq,1\n", "two columns have the same name"),
        ('question,answer\n"open,1\n', "line 2: not valid CSV"),
        ("problem,answer\nq,1\n", "line 2: there is no column 'question', only problem, answer"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "problems.csv"
    path.write_text(text)
    with pytest.raises(DyntsError, match=problem):
        survey(ProblemSource(str(path)))


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "problems.csv"
    path.write_bytes('question,answer\r\n"What is\r\n""1,5""?",007\r\n\r\nnone,\r\n'.encode("utf-8-sig"))
    assert [row for _, row in file_rows(path)] == [
        {"question": 'What is\r\n"1,5"?', "answer": "007"},
        {"question": "none", "answer": ""},
    ]
    assert survey(ProblemSource(str(path))).without_gold == 1


def test_an_array_of_anything_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.json"
    path.write_text('[{"question": "q", "answer": 1},\n 7]')
    with pytest.raises(DyntsError, match=r"problems\.json, item 2: expected a JSON object, got int"):
        survey(ProblemSource(str(path)))


@pytest.mark.usefixtures("datasets")
def test_a_data_set_says_how_its_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  data_files: "*.csv"\n  sep: ";"\n---\n'
    )
    (tmp_path / "train.csv").write_text("question;answer\nq;0.00001\nr;1e16\n")
    assert golds(tmp_path) == ["0.00001", "10000000000000000"]


@pytest.mark.usefixtures("datasets")
def test_a_late_change_of_type_names_its_cause(tmp_path: Path) -> None:
    """Of files that only `datasets` reads; in plain files it is none."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number, answer in enumerate(("1", '{"a": 1}')):
        with gzip.open(folder / f"train-{number}.jsonl.gz", "wt") as stream:
            stream.write(f'{{"question": "q{number}", "answer": {answer}}}\n')
    with pytest.raises(DyntsError, match=r"cannot read data set .*split train: .*int64") as caught:
        survey(ProblemSource(str(folder)))
    assert "Hub" not in str(caught.value)


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the shared benchmarks are not beside this checkout")
def test_real_benchmarks_are_the_same_in_every_kind_of_file(tmp_path: Path) -> None:
    for path in sorted(BENCHMARKS.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        source = ProblemSource(str(path))
        expected = [(row["id"], row["question"], row["answer"].strip()) for row in rows if row["answer"].strip()]
        assert [(item.id, item.question, item.answer) for item in read_problems(source)] == expected
        table = tmp_path / f"{path.stem}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        sheet = tmp_path / f"{path.stem}.csv"
        with sheet.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        for other in (table, sheet):
            assert survey(replace(source, dataset=str(other))) == survey(source)
