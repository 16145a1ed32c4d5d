"""`benchmarks/gpu.py` on a CPU with its tiny shape: what will run on the day that a card is at hand."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dynts.decode import recorded
from dynts.methods import METHODS, resolve_method

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the script in a small way, and returns what gpu.json says."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import gpu
    from gpu_sections import parity

    monkeypatch.setattr("dynts.bench.machine._BYTES", 2**22)
    monkeypatch.delitem(parity.KINDS, "qwen3")
    monkeypatch.setattr(parity, "methods", lambda: [resolve_method(name) for name in ("full", "h2o")])
    # as on CUDA, but for the capture
    monkeypatch.setitem(recorded.RECORDERS, "cpu", lambda run, running: run)

    def main(*words: str) -> dict[str, Any]:
        gpu.main(["--out", str(tmp_path), "--no-compile", *words])
        return json.loads((tmp_path / "gpu.json").read_text())

    return main


def test_every_section_is_measured_and_written(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run()
    sections, page = record["sections"], (tmp_path / "gpu.md").read_text()
    assert list(sections) == ["parity", "attention", "steps", "compaction", "labels", "sampling", "generate"]
    rows = [row for section in sections.values() for row in section]
    assert all(not row.keys() & {"failed", "left out"} or row.get("failed") == "" for row in rows)
    for row in sections["parity"]:
        assert row["within rounding"]
        assert 0 < row["error"] < 0.02 < 0.2 < row["felt"]
    # two models, then one in float16, then both with plain steps
    assert [row["error"] < 1e-5 for row in sections["parity"]] == [True, True, False, True, True]
    # without a budget steps have no fixed shape
    assert [row["recorded"] for row in sections["parity"]] == [1, 1, 1, 0, 0]
    assert all(0 < row["masked error"] < 1e-5 and row["masked us"] > 0 for row in sections["attention"])
    floor, default, dynamic = (
        next(row for row in sections["steps"] if (row["engine"], row["batch"]) == (name, 1))
        for name in ("floor", "dynts", "DynamicCache without cuDNN")
    )
    columns = ["ms at 20", "ms at 50"]
    assert all(floor[column] > 0 for column in columns)
    assert default["recorded"] == 1
    assert default["KV over computed"] == dynamic["KV over computed"] == 1
    found = {row["what"]: row for row in record["targets"]}
    ratio = min(dynamic[column] / default[column] for column in columns)
    target = found["DynamicCache without cuDNN over default steps, batch 1"]
    assert (target["found"], target["met"]) == (ratio, ratio >= 2.5)
    assert found["compile=True over the floor, batch 1"]["met"] is None
    assert all(row["moving ms"] > 0 for row in sections["compaction"])
    assert all(row["seconds"] > 0 for row in sections["labels"])
    assert all(row["ms"] > 0 for row in sections["sampling"])
    whole = {row["engine"]: row for row in sections["generate"]}
    assert list(whole) == ["dynts", "DynamicCache without cuDNN", "static cache", "DynamicCache with cuDNN"]
    assert whole["dynts"]["over its steps"] > 0
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## What was to be shown",
        *(f"## {name.capitalize()}" for name in sections),
    ]
    assert page.count("\n| dynts, compile=False |") == 2
    assert "mean nothing" in page
    assert f"torch {version('torch')}" in " ".join(page.split())
    printed = capsys.readouterr().out
    assert all(f"s] {name}: " in printed for name in sections)


def test_an_error_in_a_step_is_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(step: Any, running: Any) -> Any:
        output = step(running)
        return lambda running: output

    monkeypatch.setitem(recorded.RECORDERS, "cpu", stale)
    rows = run("--sections", "parity")["sections"]["parity"]
    assert [row["within rounding"] for row in rows] == [False, False, False, True, True]


def test_what_fails_is_said_and_the_rest_is_measured(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("gpu_sections.parts._own_sampler", fail)
    ours, theirs = run("--sections", "sampling")["sections"]["sampling"]
    assert ours["failed"] == "RuntimeError: out of memory"
    assert "out of memory" in (tmp_path / "gpu.md").read_text()
    assert theirs["ms"] > 0


def test_a_section_whose_time_is_over_says_what_it_leaves_out(run: Run) -> None:
    sections = run("--minutes", "0")["sections"]
    rows = [row for section in sections.values() for row in section]
    assert len(rows) > 20
    assert all(row["left out"] for row in rows)


def test_the_parity_section_knows_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from gpu_sections import parity

    assert [method.name for method in parity.methods()] == list(METHODS)


@pytest.mark.parametrize("words", [("--sections", "nonsense"), ("--out", "missing")])
def test_bad_input_is_refused(run: Run, words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*words)
    assert words[1] in capsys.readouterr().err
