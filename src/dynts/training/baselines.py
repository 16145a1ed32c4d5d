"""Trivial predictors: without their figures beside it, the figure of a trained one means little."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from dynts.training.dataset import Tokens
from dynts.training.metrics import trace_metrics
from dynts.training.transforms import by_head, labelled

Array = npt.NDArray[np.float64]
Keys = npt.NDArray[np.int64]
BASELINES = ("position_only", "token_identity", "random")
_POSITIONS_PER_BUCKET = 16


def baseline_metrics(
    train: Iterable[Tokens], held_out: Iterable[Tokens], seed: int
) -> dict[str, list[dict[str, float]]]:
    """Metrics of each held-out trace, by trivial predictor: see `baseline_scores`."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in BASELINES}
    for tokens, scores in baseline_scores(train, held_out, seed):
        for name, predicted in scores.items():
            rows[name].append(trace_metrics(predicted, tokens.targets))
    return rows


def baseline_scores(
    train: Iterable[Tokens], held_out: Iterable[Tokens], seed: int
) -> Iterator[tuple[Tokens, dict[str, Array]]]:
    """Each held-out trace with the scores of predictors that see only a token's position, only its identity, or nothing.

    Scores are shaped as the trace's targets. Position and identity predict the mean training target of their kind, which is
    what least squares would fit. Traces are taken one at a time; memory is O(longest trace + largest token id), for each
    layer and head that has targets of its own.
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
