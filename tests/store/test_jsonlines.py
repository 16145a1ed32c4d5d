"""One reader of JSON: what is wrong is named by file and line, whoever reads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynts.chat.markers import ThinkFormat
from dynts.cli.engine import EngineOptions
from dynts.collect.importing import ImportColumns, import_traces
from dynts.config import load_settings
from dynts.decode.answers import read_questions
from dynts.errors import DyntsError
from dynts.predictor.model import ImportancePredictor
from dynts.store.journal import Journal, read_journal
from dynts.store.jsonlines import read_objects
from dynts.store.manifest import read_manifest
from dynts.store.progress import Display
from dynts.traces.problems import survey
from dynts.traces.source import ProblemSource
from dynts.traces.traces import read_traces

ROW = {"id": "a", "question": "1 + 1?", "response": "two </think> \\boxed{2}", "answer": "2"}
FAULTS = {
    "a number of 5,000 digits": (b'{"question": ' + b"1" * 5000 + b"}", "a number has more than 4300 digits"),
    "deep nesting": (b'{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too many levels of lists and objects"),
    "half a surrogate pair": (b'{"question": "so \\ud83d"}', r"'\\ud83d' is half of a surrogate pair"),
    "half a pair in a name": (b'{"\\uDC00": 1}', r"'\\udc00' is half of a surrogate pair"),
    "a field twice": (b'{"answer": 1, "answer": 2}', "field 'answer' stands twice in one object"),
    "no UTF-8": (b'{"question": "\xe9"}', "can't decode byte 0xe9"),
    "no JSON": (b'{"question": }', r"not valid JSON \(Expecting value at column 14\)"),
}


def import_file(path: Path) -> None:
    with Display("importing") as display:
        import_traces([path], path.parent / "out", ImportColumns(), ThinkFormat(), display)


def read_problems(path: Path) -> None:
    pytest.importorskip("pyarrow", reason="problems need pyarrow: pip install 'dynts-kv[collect]'")
    survey(ProblemSource(str(path)))


LINES: dict[str, Callable[[Path], object]] = {
    "questions.jsonl": read_questions,
    "traces.jsonl": read_traces,
    "problems.jsonl": read_problems,
    "elsewhere.jsonl": import_file,
}
FILES: dict[str, Callable[[Path], object]] = {
    "settings.json": load_settings,
    "manifest.json": lambda path: read_manifest(path.parent, "dynts collect"),
    "config.json": lambda path: ImportancePredictor.from_pretrained(path.parent),
}


@pytest.mark.quick
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", LINES)
def test_every_reader_of_lines_names_file_and_line(name: str, fault: str, tmp_path: Path) -> None:
    line, problem = FAULTS[fault]
    (tmp_path / name).write_bytes(json.dumps(ROW).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(DyntsError, match=rf"{re.escape(name)}, line 3.*{problem}") as caught:
        LINES[name](tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.quick
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_every_reader_of_a_whole_file_names_it(name: str, fault: str, tmp_path: Path) -> None:
    text, problem = FAULTS[fault]
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DyntsError, match=rf"{re.escape(name)}.*{problem}") as caught:
        FILES[name](tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.quick
@pytest.mark.parametrize("fault", FAULTS)
def test_a_journal_goes_on_without_a_damaged_line_and_names_it(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, problem = FAULTS[fault]
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n{"b": 3}\n[4]\n{"a": 5')
    assert list(read_journal(journal, lambda row: row["a"])) == [1, 2]
    assert re.search(rf"journal\.jsonl, line 2 is damaged and left out \(.*{problem}", caplog.messages[0])
    assert [message.split(" is damaged")[0][-6:] for message in caplog.messages] == ["line 2", "line 4", "line 5"]


@pytest.mark.quick
def test_a_journal_is_continued_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    assert not path.exists()  # an unused one leaves nothing
    journal.append({"a": 1})
    assert path.read_bytes() == b'{"a": 1}\n'  # on the disk while the job goes on
    journal.close()
    with path.open("ab") as stream:
        stream.write(b'{"a": 2')
    journal = Journal(path)
    journal.append({"a": "\N{GRINNING FACE}"})
    assert (journal.rows, journal.size) == (1, path.stat().st_size)
    journal.close()
    assert list(read_journal(path, dict)) == [{"a": 1}, {"a": "\N{GRINNING FACE}"}]


@pytest.mark.quick
def test_json_on_the_command_line_is_read_the_same_way() -> None:
    deep = "[" * 100_000
    for text, problem in (("{", "not valid JSON"), ("[1]", "expected a JSON object, got list"), (deep, "levels")):
        with pytest.raises(DyntsError, match=f"--engine-args: .*{problem}"):
            EngineOptions("vllm", engine_args=text).arguments()


@pytest.mark.quick
def test_files_of_other_editors_are_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line breaks, blank lines, no last line break.

    Whole pairs of surrogates are characters.
    """
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(ROW), "", "  \t", json.dumps({**ROW, "id": "b", "question": "\N{GRINNING FACE}\u2028?"})]
    path.write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    expected: list[tuple[int, Any]] = [(1, ROW), (4, {**ROW, "id": "b", "question": "\N{GRINNING FACE}\u2028?"})]
    assert list(read_objects(path)) == expected
    assert read_questions(path) == [("a", "1 + 1?"), ("b", "\N{GRINNING FACE}\u2028?")]
    settings = tmp_path / "settings.json"
    values = {"method": "window", "budget": 60, "local_window": 20, "retention_ratio": 0.5}
    settings.write_bytes(json.dumps(values, indent=1).replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_settings(settings).config.budget == 60
