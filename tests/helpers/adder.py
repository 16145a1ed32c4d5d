"""A made-up engine, quick enough to collect with a hundred times, and what a folder holds."""

import random
from collections.abc import Iterator
from pathlib import Path

from dynts.collect.collect import collect
from dynts.collect.plan import Plan, collect_settings
from dynts.config import ModelSource, Sampling
from dynts.engines.engine import Completion, Request
from dynts.store.progress import Display, Tally
from dynts.traces.folder import TraceFolder
from dynts.traces.source import ProblemSource


class Adder:
    """An engine that adds: every third answer is wrong, every fifth response unfinished."""

    batch = 4

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.made: list[str] = []

    def __call__(self, requests: Iterator[Request]) -> Iterator[Completion]:
        for request in requests:
            if len(self.made) == self.stop_after:
                raise KeyboardInterrupt
            self.made.append(request.id)
            yield self.solve(request)

    @staticmethod
    def solve(request: Request) -> Completion:
        number = int(request.problem.answer)
        noise = random.Random(request.sampling_seed).randrange(1000)
        answer = number + (number % 3 == 0)
        text = f"<think>\nlet me see {noise}\n</think>\n\n\\boxed{{{answer}}}"
        if number % 5 == 0:
            text = f"<think>\nlet me see {noise}"
        return Completion(request, text, number % 5 != 0, range(7), range(11), 0.25)


def run(source: Path | ProblemSource, out: Path, engine: Adder, **changes: object) -> Tally:
    """Collect with an engine; `changes` are fields of `Plan`, and `seed`."""
    if isinstance(source, Path):
        source = ProblemSource(str(source), keep_columns=("level",))
    seed = changes.pop("seed", 0)
    plan = Plan(source, Sampling(seed=seed), **changes)
    found = plan.survey()
    settings = collect_settings(plan, found, ModelSource("adder"), "adder")
    with Display("collecting") as display:
        return collect(plan, found, out, settings, engine, display)


def rows_of(path: Path) -> dict[str, tuple[object, ...]]:
    """What a folder holds, by id; an id that occurs twice is an error."""
    found: dict[str, tuple[object, ...]] = {}
    for row in TraceFolder.open(path).rows():
        assert row.id not in found, f"{row.id} occurs twice"
        found[row.id] = (row.problem_id, row.sample, row.question, row.response, row.answer, row.correct, row.reason)
    return found
