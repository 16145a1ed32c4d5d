"""Measuring trace by trace: interrupted, continued, shared, refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.analyze.measure import Row, measure_traces
from dynts.errors import DyntsError
from dynts.store.lock import hold
from dynts.store.torchrun import Rank
from dynts.traces.sets import as_sets
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace
from dynts.training.config import LabelOptions


class Job:
    """Measures the length of traces, and remembers which ones it was asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, traces: Path, out: Path) -> None:
        self.tokenizer, self.traces, self.out = tokenizer, traces, out
        self.asked: list[int] = []
        self.stop_at: int | None = None

    def measure(self, place: int, trace: Trace, tokens: TokenizedTrace) -> Row:
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(place)
        return {"length": len(tokens.ids)}

    def run(self, settings: dict[str, Any] | None = None, **options: Any) -> tuple[list[Row], int]:
        chosen = LabelOptions(**options)
        sets = as_sets(self.traces)
        return measure_traces(
            self.out, "dynts analyze test", settings or {}, sets, self.tokenizer, chosen, self.measure
        )


@pytest.fixture
def job(embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase], traces: Path, tmp_path: Path) -> Job:
    return Job(embedded[1], traces, tmp_path / "out")


def test_an_interrupted_job_continues_where_it_was(job: Job) -> None:
    job.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        job.run()
    first = list(job.asked)
    [journal] = job.out.glob("rows-*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-9])  # as if the machine had stopped while it wrote the fourth
    job.stop_at = None
    rows, total = job.run()
    assert len(first) == 4
    assert job.asked[4] == first[3]
    assert job.asked[:3] + job.asked[4:] == [row["place"] for row in rows]
    assert len(rows) == total
    asked = len(job.asked)
    assert job.run() == (rows, total)
    assert len(job.asked) == asked


def test_processes_share_the_traces(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    some, total = job.run()
    assert 0 < len(some) < total
    monkeypatch.setenv("RANK", "0")
    rows, _ = job.run()
    assert len(rows) == total == len(set(job.asked)) == len(job.asked)
    assert [row["place"] for row in rows] == sorted(job.asked)


def test_other_settings_and_busy_or_foreign_folders_are_refused(job: Job) -> None:
    rows, total = job.run({"seed": 0}, limit=3)
    assert len(rows) == total == 3
    with pytest.raises(DyntsError, match="seed: 0 there, 1 now"):
        job.run({"seed": 1}, limit=3)
    with pytest.raises(DyntsError, match="limit: 3 there, 4 now"):
        job.run({"seed": 0}, limit=4)
    with hold(job.out, Rank(0, 1, 0, "another job"), "a test"), pytest.raises(DyntsError, match="is in use"):
        job.run({"seed": 0}, limit=3)
    job.out = job.traces.parent
    with pytest.raises(DyntsError, match="choose a new or empty folder"):
        job.run()
