"""Medians of what was measured, an engine on a piece of work at a time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from dynts.bench.generation import Generation
from dynts.bench.machine import Busy, Machine
from dynts.bench.profile import Profile
from dynts.models.costs import StepCost

Measured = Profile | Generation


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class EngineSummary:
    """An engine on one piece of work.

    Attributes:
        engine: its name.
        budget: most cached tokens of a row; None where nothing is evicted.
        batch: rows.
        generated: tokens generated in each row.
        tokens_per_second: of all rows.
        speedup: over the first engine, of the same round.
        kv_bytes: allocated for keys and values at their peak.
        first_seconds: of the first decode step of the first round, in which steps are recorded or compiled; None where
            there was none.
        busy: what a GPU did in a step, in the last round; None on another device.
        details: what profile mode knows beside: steps by cache length with their floors, and the parts.
    """

    engine: str
    budget: int | None
    batch: int
    generated: int
    tokens_per_second: Spread
    speedup: Spread
    kv_bytes: int
    first_seconds: float | None
    busy: Busy | None
    details: dict[str, Any]


def summarize(rounds: Sequence[Sequence[Measured]], machine: Machine, cost: StepCost) -> list[EngineSummary]:
    """Sum up the rounds, one row an engine.

    Args:
        rounds: of one piece of work; in each the same engines in the same order, the first one is the reference.
        machine: limits of the device.
        cost: of a decode step.
    """
    rows = []
    for index, first in enumerate(rounds[0]):
        runs = [found[index] for found in rounds]
        ratios = [found[index].tokens_per_second / found[0].tokens_per_second for found in rounds]
        rows.append(
            EngineSummary(
                engine=first.engine,
                budget=first.budget,
                batch=first.work.batch,
                generated=first.work.generated,
                tokens_per_second=Spread.of([run.tokens_per_second for run in runs]),
                speedup=Spread.of(ratios),
                kv_bytes=max(run.kv_bytes for run in runs),
                first_seconds=first.first_seconds,
                busy=runs[-1].busy,
                details=_details([run for run in runs if isinstance(run, Profile)], machine, cost),
            )
        )
    return rows


def _details(runs: Sequence[Profile], machine: Machine, cost: StepCost) -> dict[str, Any]:
    if not runs:
        return {}
    first = runs[0]
    batch = first.work.batch
    steps = []
    for index, length in enumerate(first.lengths):
        taken = Spread.of([run.step_seconds[index] for run in runs])
        floor = machine.floor(cost.read_bytes(batch, length), cost.flops(batch, length))
        steps.append({"tokens": length, "seconds": asdict(taken), "floor": floor, "over_floor": taken.median / floor})
    parts = {
        part: asdict(Spread.of([run.compaction_seconds[part] for run in runs])) for part in first.compaction_seconds
    }
    overhead = [1 - run.decode_seconds / run.total_seconds for run in runs]
    return {
        "steps": steps,
        "prefill_seconds": asdict(Spread.of([run.prefill_seconds for run in runs])),
        "decode_seconds": asdict(Spread.of([run.decode_seconds for run in runs])),
        "compactions": first.compactions,
        "compaction_seconds": parts,
        "compaction_share": asdict(Spread.of(overhead)),
        "memory_bytes": max(run.memory_bytes for run in runs),
    }
