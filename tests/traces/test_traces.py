"""Reading, filtering and grading of traces."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from dynts.errors import DyntsError
from dynts.grading.grader import Grader
from dynts.traces.filters import REASONS, Selected, select_traces
from dynts.traces.traces import Trace, read_traces
from shared_data import R1_TRACES
from tiny_traces import make_row


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"question": "a", "response": "b"}', "field 'answer' is missing"),
        ('{"question": "a", "response": 3, "answer": "c"}', "field 'response' must be a string, got int"),
        ('{"question": "a", "response": "b", "answer": null}', "field 'answer' must be a string, got NoneType"),
        ('{"question": " ", "response": "b", "answer": "c"}', "field 'question' is empty"),
        ('{"question": "a", "response": "", "answer": "c"}', "field 'response' is empty"),
        ('{"id": "trace-0", "question": "a", "response": "b", "answer": "c"}', "'trace-0' was already used in line 1"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(make_row(0)) + "\n\n" + line + "\n")
    with pytest.raises(DyntsError) as caught:
        read_traces(path)
    assert problem in str(caught.value)
    assert f"{path}, line 3" in str(caught.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match=r"cannot read .*absent\.jsonl"):
        read_traces(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DyntsError, match="holds no traces"):
        read_traces(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DyntsError, match="cannot read"):
        read_traces(tmp_path / "binary.jsonl")


def test_ids_are_made_from_the_content_when_absent(write_lines: Callable[..., Path]) -> None:
    rows = [{key: value for key, value in make_row(index).items() if key != "id"} for index in range(3)]
    forward, backward = read_traces(write_lines(rows)), read_traces(write_lines(rows[::-1]))
    assert len({trace.id for trace in forward}) == 3
    assert [trace.id for trace in forward] == [trace.id for trace in backward][::-1]


def test_line_separators_inside_a_string_do_not_split_a_line(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({**make_row(0), "question": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_traces(path)[0].question == "a\u2028b"


def sort_out(chosen: Iterable[Selected | str]) -> tuple[list[Selected], Counter[str]]:
    """The selected traces, and how often each reason drops one."""
    chosen = list(chosen)
    return [item for item in chosen if isinstance(item, Selected)], Counter(
        item for item in chosen if isinstance(item, str)
    )


def test_every_reason_to_drop_a_trace_is_counted(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynts.traces.filters.Grader", functools.partial(Grader, seconds=1))
    good = make_row(0, steps=3)
    bad = {
        "unfinished": {"response": "a = 1 ."},
        "think_markers": {"response": good["response"] + "</think>"},
        "no_thinking": {"response": " \n</think> \\boxed{1}"},
        "no_answer": {"response": "a = 1 </think>\n"},
        "ungradable": {"response": "a = 1 </think> 18"},
        "grader_failed": {"response": "a = 1 </think> \\boxed{9^{9^{9^9}}}"},
        "wrong_answer": {"answer": "1000"},
        "too_long": {"response": "a " * 90 + good["response"]},
    }
    rows = [{**good, **change, "id": reason, "question": f"a = {reason}"} for reason, change in bad.items()]
    rows.append({**good, "id": "opened twice", "question": "c", "response": f"<think> a <think> {good['response']}"})
    rows += [good, {**good, "id": "again", "question": good["question"] + " "}]
    kept, dropped = sort_out(select_traces([Trace(**row) for row in rows], tokenizer, max_tokens=80))
    assert [selected.trace.id for selected in kept] == [good["id"]]
    assert dropped == {**dict.fromkeys(REASONS, 1), "think_markers": 2}


def test_a_good_trace_is_kept_when_a_wrong_one_for_its_question_came_first(tokenizer: PreTrainedTokenizerFast) -> None:
    good = make_row(0)
    wrong = {**good, "id": "wrong", "response": "a = 1 </think> \\boxed{1000}"}
    kept, _ = sort_out(select_traces([Trace(**wrong), Trace(**good)], tokenizer))
    assert [selected.trace.id for selected in kept] == [good["id"]]
    kept, dropped = sort_out(select_traces([Trace(**wrong), Trace(**good)], tokenizer, keep_incorrect=True))
    assert [(selected.trace.id, selected.correct) for selected in kept] == [("wrong", False)]
    assert dropped["duplicate_question"] == 1


@pytest.mark.skipif(not R1_TRACES.exists(), reason="the shared R1 traces are not beside this checkout")
def test_real_traces(tokenizer: PreTrainedTokenizerFast) -> None:
    kept, dropped = sort_out(select_traces(read_traces(R1_TRACES), tokenizer))
    assert dropped["unfinished"] == 31
    assert len(kept) + sum(dropped.values()) == 500
    assert len(kept) > 350
