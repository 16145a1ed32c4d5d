"""Problems of files, folders and presets, and the gold answers inside them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dynts.errors import DyntsError
from dynts.traces.benchmarks import PRESETS
from dynts.traces.problems import read_problems, survey
from dynts.traces.source import GOLD, ProblemSource


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("whole", " 18 ", "18"),
        ("whole", " ", None),
        ("boxed", r"So $x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("boxed", r"First \boxed{1}, then \boxed{\left\{ 2 \right\}}.", r"\left\{ 2 \right\}"),
        ("boxed", r"the sum is $\boxed 5$.", "5"),
        ("boxed", r"\boxed{a_{1}+\{b\}} text {", r"a_{1}+\{b\}"),
        ("boxed", r"no answer", None),
        ("boxed", r"\boxed{open", None),
        ("boxed", r"ends with \boxed", None),
        ("boxed", r"$\boxed $", None),
        ("hashes", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18", "18"),
        ("hashes", "no mark", None),
        ("hashes", "#### ", None),
    ],
)
def test_gold_answers(form: str, text: str, expected: str | None) -> None:
    assert GOLD[form](text) == expected


def test_files_of_both_kinds_give_the_same_problems(sums: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "sums.parquet", row_group_size=7)
    source = ProblemSource(str(sums), keep_columns=("level",))
    other = replace(source, dataset=str(tmp_path / "sums.parquet"))
    assert list(read_problems(source)) == list(read_problems(other))
    assert survey(source) == survey(other)
    first = next(read_problems(source))
    assert (first.id, first.answer, first.extra) == ("sum-0", "1", {"level": "0"})


def test_ids_without_a_column_come_from_the_content(write_lines: Callable[..., Path]) -> None:
    rows = [{"question": f"q{index}", "answer": "1"} for index in range(5)]
    forward = survey(ProblemSource(str(write_lines(rows, "a.jsonl"))))
    problems = {problem.question: problem.id for problem in read_problems(ProblemSource(str(write_lines(rows[::-1]))))}
    assert len(forward.chosen) == len(set(problems.values())) == 5
    for problem in read_problems(ProblemSource(str(write_lines(rows)))):
        assert problems[problem.question] == problem.id


def test_a_limit_draws_by_seed_and_a_higher_one_adds(sums: Path) -> None:
    source = ProblemSource(str(sums))
    few, more, other = survey(source, 5), survey(source, 9), survey(source, 5, seed=1)
    assert len(few.chosen) == 5
    assert few.chosen < more.chosen
    assert few.chosen != other.chosen
    assert {problem.id for problem in read_problems(source, few.chosen)} == few.chosen
    assert len(survey(source, 100).chosen) == 30


def test_rows_that_say_nothing_new_or_have_no_answer_are_left_out(write_lines: Callable[..., Path]) -> None:
    rows = [
        {"problem": "p", "solution": r"\boxed{1}"},
        {"problem": "p", "solution": r"again \boxed{1}"},
        {"problem": "q", "solution": "left as an exercise"},
        {"problem": "r", "solution": r"\boxed{3}"},
    ]
    source = ProblemSource(str(write_lines(rows)), question_column="problem", answer_column="solution", gold="boxed")
    found = survey(source)
    assert (found.available, found.repeated, found.without_gold) == (2, 1, 1)
    assert [problem.question for problem in read_problems(source)] == ["p", "r"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question_column": "prompt"}, r"line 1: there is no column 'prompt', only id, question, answer, level"),
        ({"answer_column": "gold"}, "no column 'gold'"),
        ({"id_column": "uid"}, "no column 'uid'"),
        ({"keep_columns": ("subject",)}, "no column 'subject'"),
        ({"keep_columns": ("answer",)}, "'answer' cannot be kept"),
        ({"question_column": "level"}, "'level' must be text that is not empty, got 0"),
        ({"gold": "boxed"}, r"no problems with a gold answer \(30 rows without\)"),
        ({"id_column": "level"}, r"line 4: id '0' stands for another problem"),
        ({"dataset": "absent.jsonl"}, "does not exist"),
        ({"dataset": __file__}, "unknown ending"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_named(sums: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(DyntsError, match=problem):
        survey(replace(ProblemSource(str(sums)), **changes))


def test_unknown_gold_forms_and_limits_are_refused(sums: Path) -> None:
    with pytest.raises(DyntsError, match="unknown form of gold answers 'latex'"):
        ProblemSource(str(sums), gold="latex")
    with pytest.raises(DyntsError, match="limit must be at least 1"):
        survey(ProblemSource(str(sums)), 0)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DyntsError, match=r"cannot read .*bad\.parquet"):
        survey(ProblemSource(str(tmp_path / "bad.parquet")))


@pytest.fixture
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="data sets need datasets: pip install 'dynts-kv[collect]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("no_shared_cache")
def test_presets_read_rows_of_their_form(tmp_path: Path) -> None:
    """On local folders with rows as the published data sets have them."""
    math = {
        "problem": "What is $1+1$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"We add: $1+1=\boxed{2}$.",
    }
    gsm8k = {"question": "Tom has 3 apples and eats 1.", "answer": "3-1=<<3-1=2>>2\n#### 2"}
    for name, row in (("math-train", math), ("gsm8k-train", gsm8k)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
        [problem] = read_problems(replace(PRESETS[name], dataset=str(folder), configs=()))
        assert problem.answer == "2"
        assert problem.extra == ({"level": "Level 1", "type": "Algebra"} if name == "math-train" else {})


@pytest.mark.usefixtures("no_shared_cache")
def test_splits_and_configurations_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for config in ("easy", "hard"):
        for split in ("train", "test"):
            (folder / config).mkdir(parents=True, exist_ok=True)
            row = {"question": f"{config} {split}", "answer": "1"}
            (folder / config / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "README.md").write_text(
        "---\nconfigs:\n" + "".join(f"- config_name: {c}\n  data_dir: {c}\n" for c in ("easy", "hard")) + "---\n"
    )
    source = ProblemSource(str(folder), configs=("easy", "hard"), split="test")
    assert [problem.question for problem in read_problems(source)] == ["easy test", "hard test"]
    both = replace(source, configs=("easy",), split="test+train[:1]")
    assert [problem.question for problem in read_problems(both)] == ["easy test", "easy train"]
    with pytest.raises(DyntsError, match=r"cannot read data set .*split dev: Unknown split"):
        survey(replace(source, split="dev"))
    with pytest.raises(DyntsError, match="cannot load data set nobody/nothing"):
        survey(ProblemSource("nobody/nothing"))
