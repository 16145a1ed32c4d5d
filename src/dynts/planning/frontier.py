"""Fidelity against cache size over all traces, and the setting to take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from statistics import mean

from dynts.config import CompressionConfig
from dynts.evaluate.intervals import mean_and_error
from dynts.planning.replays import MeasuredReplay


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One setting over all traces, every trace counting alike.

    Attributes:
        setting: the setting.
        kl: mean KL(full cache || compressed) of an answer token, in nats.
        kl_error: standard error of that mean, 0 for one trace.
        thinking_loss: by how much log p of a thinking token is less than with the full cache, mean, in nats.
        thinking_error: standard error of that mean, 0 for one trace.
        total_variation: see `total_variation`.
        mean_tokens: cached tokens of a decode step.
        traces: how many there are.
        compacted: those long enough to be compacted at all.
    """

    setting: CompressionConfig
    kl: float
    kl_error: float
    thinking_loss: float
    thinking_error: float
    total_variation: float
    mean_tokens: float
    traces: int
    compacted: int


def frontier(
    rows: Iterable[MeasuredReplay], grid: Sequence[CompressionConfig], traces: Sequence[str]
) -> list[FrontierPoint]:
    """Return a point for each setting of a grid; replays of other settings and traces are left out.

    Args:
        rows: what was measured.
        grid: the settings.
        traces: ids of the traces.
    """
    wanted = set(traces)
    by_setting: dict[CompressionConfig, list[MeasuredReplay]] = {setting: [] for setting in grid}
    for row in rows:
        if row.trace in wanted and row.setting in by_setting:
            by_setting[row.setting].append(row)
    return [_point(setting, found) for setting, found in by_setting.items()]


def choose(points: Sequence[FrontierPoint], tolerance: float, thinking_tolerance: float) -> FrontierPoint | None:
    """Choose the smallest budget with a setting that is good enough.

    Of several such settings the one with the least thinking loss.

    Args:
        points: the settings tried.
        tolerance: the largest KL, in nats an answer token.
        thinking_tolerance: the largest thinking loss, in nats a thinking token.

    Returns:
        None if no setting is good enough.
    """
    good = [point for point in points if point.kl <= tolerance and point.thinking_loss <= thinking_tolerance]
    return min(good, key=lambda point: (point.setting.budget, point.thinking_loss), default=None)


def total_variation(losses: Iterable[float]) -> float:
    """Estimate how far eviction moves what the model writes, as a total variation distance.

    TV = E[max(0, 1 - q(x) / p(x))] over traces x ~ p. The probability of anything that a trace can be, a right one
    among it, differs by no more between the two. The traces have to be samples of the model at temperature 1. Long ones
    let TV approach 1 for the slightest rewording.

    Args:
        losses: log p(x) - log q(x) of each trace, in nats.
    """
    return mean(1 - exp(-max(0.0, loss)) for loss in losses)


def _point(setting: CompressionConfig, rows: Sequence[MeasuredReplay]) -> FrontierPoint:
    return FrontierPoint(
        setting,
        *mean_and_error([row.kl for row in rows]),
        *mean_and_error([row.thinking_loss for row in rows]),
        total_variation(row.trace_loss for row in rows),
        mean_tokens=mean(row.mean_tokens for row in rows),
        traces=len(rows),
        compacted=sum(row.compactions > 0 for row in rows),
    )
