"""Both graders' verdicts: stored with each sample, chosen when it is read, and computed for folders that lack them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import run
from dynts.evaluate.metrics import tokens_per_second
from dynts.evaluate.results import read_results
from dynts.grading.grader import Grader
from dynts.report.arm_tables import graded_by
from dynts.traces.folder import TraceFolder
from dynts.traces.record import TraceRow
from dynts.traces.verdicts import math_verify_says

ANSWERS = [
    # response, gold, reason of dynts, verdict of Math-Verify alone
    ("so </think> \\boxed{5}", "5", None, True),
    ("so </think> \\boxed{4}", "5", "wrong_answer", False),
    ("so </think> The answer is 5.", "5", "ungradable", True),
    ("so </think> \\boxed{\\text{no solution}}", "\\emptyset", None, False),
    ("so \\boxed{5}", "5", "unfinished", False),
]


def row(number: int) -> TraceRow:
    response, gold, reason, _ = ANSWERS[number]
    return TraceRow(
        f"{number}", f"{number}", 0, "?", response, gold, reason is None, reason, finished=True, prompt_tokens=3,
        generated_tokens=9, seconds=1.0, batch="0", compactions=0, peak_tokens=12, mean_tokens=8.0, peak_bytes=100,
        cache_lengths=(),
    )  # fmt: skip


@pytest.fixture(params=["new", "earlier version"])
def results(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    settings: dict[str, Any] = {"kind": "eval", "benchmark": "b", "label": "full", "config": None, "thinking": True}
    settings |= {"method": {"name": "Full"}, "model": str(tmp_path / "gone"), "sampling": {}}
    folder = TraceFolder.create(tmp_path / "arm", settings, {"total": len(ANSWERS)})
    writer = folder.writer()
    for number, (*_, verdict) in enumerate(ANSWERS):
        writer.append(replace(row(number), math_verify=verdict if request.param == "new" else None))
    writer.close()
    return tmp_path / "arm"


def test_either_grader_can_be_chosen(results: Path) -> None:
    [own], [stock] = read_results(results), read_results(results, "math-verify")
    assert [sample.correct for sample in own.samples] == [reason is None for _, _, reason, _ in ANSWERS]
    assert [sample.correct for sample in stock.samples] == [verdict for *_, verdict in ANSWERS]
    for arm in (own, stock):
        assert [sample.graders_differ for sample in arm.samples] == [False, False, True, True, False]
    assert graded_by([stock]) == "graded by math-verify; dynts and Math-Verify alone differ in 2 of 5 verdicts"


def test_seconds_of_earlier_versions_count_from_the_start_of_their_batch(results: Path) -> None:
    traces = TraceFolder.open(results)
    writer = traces.writer()
    writer.append(replace(row(0), id="new", seconds=0.5, batch="1", run_seconds=3.0))
    writer.close()
    [arm] = read_results(results)
    assert [sample.run_seconds for sample in arm.samples] == [1.0] * 5 + [3.0]
    assert tokens_per_second(arm.samples) == pytest.approx(6 * 9 / (1.0 + 3.0))


def test_a_verdict_that_is_stored_is_not_computed_again() -> None:
    with Grader() as grader:
        assert math_verify_says(replace(row(0), math_verify=False), grader) is False
        assert [math_verify_says(row(number), grader) for number in range(5)] == [verdict for *_, verdict in ANSWERS]


def test_the_report_says_whose_verdicts_count(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report"
    assert run(monkeypatch, capsys, "report", results, "--out", out, "--grader", "math-verify")[0] == 0
    page = " ".join((out / "report.md").read_text().split())  # the path of the test decides where lines break
    assert "graded by math-verify; dynts and Math-Verify alone differ in 2 of 5 verdicts" in page
    assert "| 0.400 (" in page
