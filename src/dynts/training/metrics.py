"""How well scores order the tokens of a trace: those of a predictor, and of trivial ones beside it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau, spearmanr

from dynts.training.dataset import Tokens
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
    """Return the share of top tokens by label that are top by score too; the first of equal ones counts as higher.

    Args:
        scores: [L].
        labels: [L].
        share: of the tokens that count as top.
    """
    size = max(1, round(share * np.size(labels)))
    best = (set(np.argsort(-np.asarray(values), kind="stable")[:size].tolist()) for values in (scores, labels))
    return len(set.intersection(*best)) / size


def average(metrics: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over traces, or over heads, all counting alike."""
    rows = list(metrics)
    return {name: float(np.mean([row[name] for row in rows])) for name in METRICS}


def by_group(
    rows: Mapping[str, Sequence[dict[str, float]]], groups: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean metrics by group and predictor.

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


Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.int64]
BASELINES = ("position_only", "token_identity", "random")
_POSITIONS_PER_BUCKET = 16


def baseline_metrics(
    train: Iterable[Tokens], held_out: Iterable[Tokens], seed: int
) -> dict[str, list[dict[str, float]]]:
    """Measure each held-out trace, by trivial predictor: see `baseline_scores`.

    Args:
        train: what they learn from.
        held_out: what is measured.
        seed: of the random one.
    """
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in BASELINES}
    for tokens, scores in baseline_scores(train, held_out, seed):
        for name, predicted in scores.items():
            rows[name].append(trace_metrics(predicted, tokens.targets))
    return rows


def baseline_scores(
    train: Iterable[Tokens], held_out: Iterable[Tokens], seed: int
) -> Iterator[tuple[Tokens, dict[str, Array]]]:
    """Yield each held-out trace with the scores of trivial predictors.

    They see only a token's position, only its identity, or nothing.

    Scores are shaped as the trace's targets. Position and identity predict the mean training target of their kind,
    which is what least squares would fit. Traces are taken one at a time; memory is O(longest trace + largest token
    id), for each layer and head that has targets of its own.

    Args:
        train: what they learn from.
        held_out: what they score.
        seed: of the random one.
    """
    positions, identities = _MeanByKey(), _MeanByKey()
    for tokens in train:
        positions.add(_buckets(tokens), tokens.targets)
        identities.add(tokens.ids, tokens.targets)
    generator = np.random.default_rng(seed)
    for tokens in held_out:
        shape = tokens.targets.shape
        scores = (positions(_buckets(tokens), shape), identities(tokens.ids, shape), generator.random(shape))
        yield tokens, dict(zip(BASELINES, scores, strict=True))


def _buckets(tokens: Tokens) -> Keys:
    return tokens.positions // _POSITIONS_PER_BUCKET


class _MeanByKey:
    """Mean target of the training tokens with a key; the overall mean for a key never seen."""

    def __init__(self) -> None:
        self.sums: Array = np.zeros((1, 0))
        self.counts: Array = np.zeros(0)

    def add(self, keys: Keys, targets: Array) -> None:
        known = labelled(targets)
        keys = keys[known]
        size = max(len(self.counts), int(keys.max(initial=0)) + 1)
        sums: Array = np.stack([np.bincount(keys, column, size) for column in by_head(targets[known])])
        sums[:, : self.sums.shape[1]] += self.sums
        counts: Array = np.bincount(keys, minlength=size).astype(np.float64)
        counts[: len(self.counts)] += self.counts
        self.sums, self.counts = sums, counts

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Array:
        overall = self.sums.sum(axis=1, keepdims=True) / self.counts.sum()
        means = np.divide(
            self.sums, self.counts, out=np.broadcast_to(overall, self.sums.shape).copy(), where=self.counts > 0
        )
        found = np.where(keys < len(self.counts), means[:, keys.clip(max=len(self.counts) - 1)], overall)
        return found.T.reshape(shape)
