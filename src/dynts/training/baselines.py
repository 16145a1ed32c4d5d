"""Trivial predictors: without their figures beside it, the figure of a trained one means little."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dynts.training.dataset import Example
from dynts.training.metrics import average, trace_metrics

Array = npt.NDArray[np.float64]
_POSITIONS_PER_BUCKET = 16


def baseline_metrics(train: Sequence[Example], held_out: Sequence[Example], seed: int) -> dict[str, dict[str, float]]:
    """Held-out metrics of predictors that see only a token's position, only its identity, or nothing.

    Position and identity predict the mean training target of their kind, which is what least squares would fit.
    """
    positions = _MeanByKey(train, [example.positions // _POSITIONS_PER_BUCKET for example in train])
    identities = _MeanByKey(train, [example.ids for example in train])
    generator = np.random.default_rng(seed)
    predictions = {
        "position_only": [positions(example.positions // _POSITIONS_PER_BUCKET) for example in held_out],
        "token_identity": [identities(example.ids) for example in held_out],
        "random": [generator.random(len(example.targets)) for example in held_out],
    }
    return {
        name: average(trace_metrics(scores, example.targets) for scores, example in zip(values, held_out, strict=True))
        for name, values in predictions.items()
    }


class _MeanByKey:
    """Mean target of the training tokens with a key; the overall mean for a key never seen."""

    def __init__(self, examples: Sequence[Example], keys: Sequence[npt.NDArray[np.int64]]) -> None:
        targets = np.concatenate([example.targets for example in examples])
        known = ~np.isnan(targets)
        self.keys, index = np.unique(np.concatenate(keys)[known], return_inverse=True)
        self.means = np.bincount(index, weights=targets[known]) / np.bincount(index)
        self.overall = targets[known].mean()

    def __call__(self, keys: npt.NDArray[np.int64]) -> Array:
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.means[places], self.overall)
