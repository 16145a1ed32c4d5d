"""A short table of what an evaluation found."""

from collections.abc import Iterable

from rich.table import Table

from dynts.evaluate.metrics import tokens_per_second
from dynts.evaluate.results import Arm
from dynts.tables import terminal_table

_COLUMNS = (
    "benchmark: method",
    "budget",
    "Pass@1",
    "n",
    "mean\nlength",
    "closed\nthinking",
    "trun-\ncated",
    "compac-\ntions",
    "peak KV\ntokens",
    "tokens\n/s",
)


def arms_table(arms: Iterable[Arm]) -> Table:
    """One row an arm; means over its samples."""
    return terminal_table(_COLUMNS, map(_cells, arms))


def graded_by(arms: Iterable[Arm]) -> str:
    """Whose verdicts count, and of how many samples the other grader thinks otherwise."""
    arms = list(arms)
    samples = [sample for arm in arms for sample in arm.samples]
    differing = sum(sample.graders_differ for sample in samples)
    names = " and ".join(sorted({arm.grader for arm in arms}))
    return f"graded by {names}; dynts and Math-Verify alone differ in {differing} of {len(samples)} verdicts"


def _cells(arm: Arm) -> tuple[str, ...]:
    samples, count = arm.samples, max(len(arm.samples), 1)
    tokens = sum(sample.generated_tokens for sample in samples)
    return (
        f"{arm.benchmark}: {arm.method}",
        "-" if arm.config is None else str(arm.config.budget),
        f"{sum(sample.correct for sample in samples) / count:.3f}",
        str(len(samples)),
        f"{tokens / count:.0f}",
        "-"
        if any(sample.closed is None for sample in samples)
        else str(sum(bool(sample.closed) for sample in samples)),
        str(sum(not sample.finished for sample in samples)),
        f"{sum(sample.compactions for sample in samples) / count:.1f}",
        str(max((sample.peak_tokens for sample in samples), default=0)),
        f"{tokens_per_second(samples):.0f}" if samples else "-",
    )
