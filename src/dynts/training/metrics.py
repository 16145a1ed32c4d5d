"""How well predicted scores order the tokens of a trace."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, spearmanr

from dynts.training.transforms import by_head, labelled

METRICS = ("mse", "kendall_tau", "spearman", "top20_overlap", "top30_overlap")


def trace_metrics(predicted: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, float]:
    """`METRICS` of one trace; tokens whose target is NaN do not count.

    A constant score or target orders nothing, so its correlations are 0.

    Args:
        predicted: scores [L], or [L, layers, KV heads], over whose layers and heads the mean is taken.
        target: transformed labels, likewise.
    """
    scores, labels = np.asarray(predicted, dtype=np.float64), np.asarray(target, dtype=np.float64)
    known = labelled(labels)
    return average(map(_metrics, by_head(scores[known]), by_head(labels[known])))


def _metrics(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.float64]) -> dict[str, float]:
    orders = len(labels) > 1 and np.ptp(scores) > 0 and np.ptp(labels) > 0
    return {
        "mse": float(np.mean((scores - labels) ** 2)),
        "kendall_tau": float(kendalltau(scores, labels).statistic) if orders else 0.0,
        "spearman": float(spearmanr(scores, labels).statistic) if orders else 0.0,
        "top20_overlap": top_overlap(scores, labels, 0.2),
        "top30_overlap": top_overlap(scores, labels, 0.3),
    }


def top_overlap(scores: npt.ArrayLike, labels: npt.ArrayLike, share: float) -> float:
    """Share of the top tokens by label that are also top by score; the first of equal tokens counts as higher."""
    size = max(1, round(share * np.size(labels)))
    best = (set(np.argsort(-np.asarray(values), kind="stable")[:size].tolist()) for values in (scores, labels))
    return len(set.intersection(*best)) / size


def average(metrics: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over traces, or over heads, all counting alike."""
    rows = list(metrics)
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}


def by_group(
    rows: Mapping[str, Sequence[dict[str, float]]], groups: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean metrics by group and predictor.

    Args:
        rows: metrics of each trace, by predictor.
        groups: of the traces; empty gives no groups.
    """
    return {
        group: {
            name: average(row for row, its in zip(values, groups, strict=True) if its == group)
            for name, values in rows.items()
        }
        for group in sorted(set(groups))
    }
