"""Traces made elsewhere: every form of think markers, graded, counted, continued."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adder import rows_of
from dynts.chat.markers import ThinkFormat
from dynts.chat.thinking import normalise
from dynts.collect.importing import ImportColumns, import_traces
from dynts.errors import DyntsError
from dynts.store.progress import Display, Tally
from dynts.traces.folder import TraceFolder
from shared_data import R1_TRACES


def bring_in(files: list[Path], out: Path, markers: ThinkFormat | None = None, **columns: object) -> Tally:
    with Display("importing") as display:
        return import_traces(files, out, ImportColumns(**columns), markers or ThinkFormat(), display)


@pytest.mark.parametrize(
    ("response", "markers", "expected"),
    [
        ("so 2.\n</think>\n\n\\boxed{2}", ThinkFormat(), "so 2.\n</think>\n\n\\boxed{2}"),
        ("<think>\nso 2.\n</think>\n\n\\boxed{2}", ThinkFormat(), "\nso 2.\n</think>\n\n\\boxed{2}"),
        (" \n<think>so 2.</think>2", ThinkFormat(), "so 2.</think>2"),
        ("<think>\n\n</think>\n\n2", ThinkFormat(), "\n\n</think>\n\n2"),
        ("<thought>\nso 2.\n</thought>\n\n2", ThinkFormat("<thought>", "</thought>"), "\nso 2.\n</think>\n\n2"),
        ("so 2.</thought>2", ThinkFormat("<thought>", "</thought>"), "so 2.</think>2"),
        ("a <think> b", ThinkFormat(), "a <think> b"),
        ("a <thought> b </thought>", ThinkFormat("<thought>", "</thought>"), "a <think> b </think>"),
    ],
)
def test_responses_are_brought_into_one_form(response: str, markers: ThinkFormat, expected: str) -> None:
    assert normalise(response, markers) == expected


@pytest.mark.parametrize(("start", "end"), [("", "</think>"), ("<think>", " "), ("##", "##")])
def test_markers_must_be_two_texts(start: str, end: str) -> None:
    with pytest.raises(DyntsError, match="think markers must be two different texts"):
        ThinkFormat(start, end)


def lines(count: int) -> list[dict[str, object]]:
    """Right, wrong, unfinished, without a box, in turn; answers as JSON numbers."""
    ends = ("</think> \\boxed{{{0}}}", "</think> \\boxed{{{0}1}}", " hm {0}", "</think> {0}")
    return [
        {"question": f"q{x}?", "response": f"<think> {x} {ends[x % 4].format(x)}", "answer": x, "domain": f"d{x % 2}"}
        for x in range(count)
    ]


def test_imported_traces_are_graded_and_counted(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    files = [write_lines(lines(8), "a.jsonl"), write_lines(lines(12)[6:], "b.jsonl")]
    tally = bring_in(files, tmp_path / "out", keep=("domain",))
    assert (tally.done, tally.correct) == (12, 3)
    assert dict(tally.dropped) == {"wrong_answer": 3, "unfinished": 3, "ungradable": 3}
    folder = TraceFolder.open(tmp_path / "out")
    assert (folder.manifest["total"], folder.manifest["repeated"]) == (12, 2)
    rows = list(folder.rows())
    assert rows[4].response == " 4 </think> \\boxed{4}"
    assert (rows[4].correct, rows[4].answer, rows[4].extra, rows[4].generated_tokens) == (
        True,
        "4",
        {"domain": "d0"},
        None,
    )


def test_an_interrupted_import_continues(
    write_lines: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(lines(12))
    bring_in([file], tmp_path / "whole")
    judged = []

    def interrupt(response: str, *others: object) -> tuple[str | None, bool]:
        if len(judged) == 5:
            raise KeyboardInterrupt
        judged.append(response)
        return original(response, *others)

    from dynts.collect import importing

    original = importing.judge
    monkeypatch.setattr(importing, "judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bring_in([file], tmp_path / "out")
    monkeypatch.setattr(importing, "judge", lambda *args: judged.append(args[0]) or original(*args))
    bring_in([file], tmp_path / "out")
    assert len(judged) == 12
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    file.write_text(file.read_text().replace("q0?", "q00?"))
    with pytest.raises(DyntsError, match="files"):
        bring_in([file], tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        ({"question": "q", "response": "r"}, {}, "line 2: field 'answer' is missing"),
        ({"question": "q", "response": " ", "answer": "1"}, {}, "'response' must be text that is not empty, got ' '"),
        ({"question": "q", "response": "r", "answer": None}, {}, "'answer' must be text that is not empty, got None"),
        ({"question": "q", "response": "r", "answer": "1"}, {"answer": "gold"}, "line 1: field 'gold' is missing"),
        ({"question": "q", "response": "r", "answer": "1", "id": "x"}, {}, "id 'x' stands for another trace before"),
        ({}, {"keep": ("correct",)}, "'correct' cannot be kept"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(
    write_lines: Callable[..., Path], tmp_path: Path, row: dict[str, object], columns: dict[str, object], problem: str
) -> None:
    first = {"question": "q", "response": "first", "answer": "1", "id": "x"}
    with pytest.raises(DyntsError, match=problem):
        bring_in([write_lines([first, row])], tmp_path / "out", **columns)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not R1_TRACES.exists(), reason="the shared R1 traces are not beside this checkout")
def test_real_traces(tmp_path: Path) -> None:
    tally = bring_in([R1_TRACES], tmp_path / "out", keep=("model",))
    assert tally.done == 500
    assert tally.dropped["unfinished"] == 31
    assert tally.correct is not None
    assert 380 <= tally.correct <= 469
    assert tally.correct + sum(tally.dropped.values()) == 500
    ids = [json.loads(line)["id"] for line in R1_TRACES.read_text().splitlines()]
    assert [row.id for row in TraceFolder.open(tmp_path / "out").rows()] == ids
