"""The page as a file: what it holds, what it could load, what a trace's text can do to it."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from command_line import run
from dynts.predictor.model import ImportancePredictor
from dynts.traces.traces import Trace
from dynts.view.data import TraceView
from dynts.view.page import embed, page, write_page
from html_elements import Elements
from long_page import long_view
from nasty_trace import NASTY


def array(text: str, dtype: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_loads_nothing(shown: TraceView) -> None:
    elements = Elements(page(shown))
    tags = [tag for tag, _, _ in elements.found]
    assert tags.count("script") == 2
    assert tags.count("style") == 1
    assert not {"link", "img", "iframe", "object", "base"} & set(tags)
    attributes = [name for _, found, _ in elements.found for name in found]
    assert not [name for name in attributes if name in ("src", "href", "srcset", "style") or name.startswith("on")]
    (style,) = elements.texts("style")
    assert "url(" not in style
    assert "@import" not in style
    _, script = elements.texts("script")
    policy = next(found["content"] for _, found, _ in elements.found if "http-equiv" in found)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy == f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'"


def test_text_is_data(shown: TraceView) -> None:
    text = page(shown)
    assert text.count("</script") == 2
    assert "<img" not in text
    data = json.loads(Elements(text).texts("script")[0])
    assert data["texts"] == shown.texts
    assert NASTY in "".join(data["texts"])
    assert data["id"] == "trace-<1>"
    assert "<title>dynts view: trace-&lt;1&gt;</title>" in text
    assert json.loads(embed(NASTY)) == NASTY


def test_arrays_come_back(shown: TraceView) -> None:
    data = json.loads(Elements(page(shown)).texts("script")[0])
    for item, importance in zip(data["importances"], shown.importances, strict=True):
        values, percent = array(item["values"], "<f4"), array(item["percent"], "u1")
        np.testing.assert_array_equal(values, importance.values.numpy())
        for index in range(0, len(values), 17):
            known = values[~np.isnan(values)]
            # ties share their mean rank
            rank = (np.sum(known < values[index]) + np.sum(known <= values[index]) + 1) / 2
            assert percent[index] == (0 if np.isnan(values[index]) else np.ceil(100 * rank / len(known)))
    assert set(data["importances"][2]["agreement"]) == {"answer", "future"}
    for item, kept in zip(data["methods"], shown.kept, strict=True):
        positions, holders = array(item["positions"], "<u4"), array(item["holders"], "<u2")
        start = 0
        for eviction, size in zip(kept.evictions, array(item["changed"], "<u4"), strict=True):
            np.testing.assert_array_equal(positions[start : start + size], eviction.positions.numpy())
            np.testing.assert_array_equal(holders[start : start + size], eviction.holders.numpy())
            start += size
        assert start == len(positions) == len(holders)


def test_writing_is_all_or_nothing(shown: TraceView, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with pytest.raises(AttributeError):
        write_page(replace(shown, kept=[None]), target)  # type: ignore[list-item]
    assert target.read_text() == "old"
    write_page(shown, target)
    assert target.read_text(encoding="utf-8") == page(shown)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_long_trace_stays_below_three_megabytes() -> None:
    size = len(page(long_view()).encode())
    assert size < 3_000_000, size


@pytest.fixture
def saved(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, predictor: ImportancePredictor, tmp_path: Path
) -> dict[str, Path]:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    predictor.save_pretrained(tmp_path / "predictor")
    ImportancePredictor(replace(predictor.config, hidden_size=8)).save_pretrained(tmp_path / "other")
    return {name: tmp_path / name for name in ("model", "predictor", "other")}


def row(trace: Trace) -> dict[str, str]:
    return {"id": trace.id, "question": trace.question, "response": trace.response, "answer": trace.answer}


def test_command_writes_the_page(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_lines: Any,
    trace: Trace,
    shown: TraceView,
    saved: dict[str, Path],
    tmp_path: Path,
) -> None:
    traces = write_lines([{**row(trace), "id": "other"}, row(trace)])
    out = tmp_path / "page.html"
    common = ("view", "--model", saved["model"], "--traces", traces, "--out", out, "--id", trace.id)
    budget = ("--budget", 220, "--local-window", 40, "--retention-ratio", 0.5)
    code, said, _ = run(
        monkeypatch,
        capsys,
        *common,
        "--predictor",
        saved["predictor"],
        "--method",
        "dynts, rkv,window",
        "--native",
        *budget,
    )
    assert code == 0
    assert said == f"trace {trace.id}, {len(shown.texts)} tokens: {out}\n"
    data = json.loads(Elements(out.read_text(encoding="utf-8")).texts("script")[0])
    assert data["model"] == "model"
    assert data["texts"] == shown.texts
    assert [method["name"] for method in data["methods"]] == ["dynts", "rkv", "rkv, native", "window"]
    code, _, error = run(monkeypatch, capsys, *common, "--method", "window")
    assert code == 0
    assert "does not reach the budget of 5000 tokens; try --budget" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "window", "--id", "nobody"], "no trace has the id 'nobody'; ids here: trace-<1>, unfinished"),
        (["--method", "window", "--id", "unfinished"], "has no closing think marker </think>"),
        (["--method", "window", "--budget", "30", "--local-window", "4"], "budget 30 is too small for a question of"),
        (["--predictor", "other"], "hidden states of size 8, this model's have size 32"),
        (["--method", "dynts"], "method 'dynts' needs --predictor"),
        (["--method", "window,"], "unknown method ''"),
        (["--method", "window", "--out", "nowhere/page.html"], "the folder of nowhere/page.html does not exist"),
        (["--method", "window", "--out", "."], "is a folder"),
        (["--method", "window", "--model", "./none"], "model folder ./none does not exist"),
    ],
)
def test_bad_input_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_lines: Any,
    trace: Trace,
    saved: dict[str, Path],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(saved["model"].parent)
    traces = write_lines([row(trace), {**row(trace), "id": "unfinished", "response": "hmm"}])
    code, _, error = run(
        monkeypatch, capsys, "view", "--model", "model", "--traces", traces, "--out", "page.html", *options
    )
    assert code == 2
    assert message in error
    assert not Path("page.html").exists()
