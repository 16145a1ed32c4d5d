"""Scale the labels of a trace for training.

Raw labels are tiny and heavy-tailed. Decoding uses only their order, so any strictly increasing transform is
legitimate; these are relative to the trace itself and need no constant per model. They are not equivalent, though: a
token that matters much or not at all, and nothing in the text so far tells which, gets the mean of both. `linear` ranks
such tokens by the attention to expect, `rank` by the place to expect.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from dynts.errors import DyntsError

Array = npt.NDArray[np.float64]


def rank(labels: Array) -> Array:
    """Return the rank within the trace over its length, in (0, 1]; ties share their mean rank."""
    return np.asarray(rankdata(labels, axis=0), dtype=np.float64) / len(labels)


def power(labels: Array) -> Array:
    """`(label / mean) ** 0.3`."""
    return (labels / _mean(labels)) ** 0.3


def log(labels: Array) -> Array:
    """`log(1 + label / mean)`."""
    return np.log1p(labels / _mean(labels))


def linear(labels: Array) -> Array:
    """`label / mean`."""
    return labels / _mean(labels)


TRANSFORMS: dict[str, Callable[[Array], Array]] = {"rank": rank, "power": power, "log": log, "linear": linear}


def transform_labels(labels: npt.ArrayLike, transform: str) -> Array:
    """Apply a transform to the labels of one trace; NaN labels stay NaN and do not count.

    Args:
        labels: [L], or [L, layers, KV heads], of which each layer and head is scaled by itself.
        transform: one of `TRANSFORMS`.

    Raises:
        DyntsError: no such transform.
    """
    if transform not in TRANSFORMS:
        raise DyntsError(f"unknown transform {transform!r}: choose from {', '.join(TRANSFORMS)}")
    values = np.asarray(labels, dtype=np.float64)
    result = np.full_like(values, np.nan)
    known = labelled(values)
    if known.any():
        result[known] = TRANSFORMS[transform](values[known])
    return result


def by_head(values: Array) -> Array:
    """[heads of all layers, L] of values [L, layers, KV heads]; values [L] have one head."""
    return values.reshape(len(values), math.prod(values.shape[1:])).T


def labelled(labels: Array) -> npt.NDArray[np.bool_]:
    """Mark the tokens that have a label, bool [L]; one that is NaN is so in every layer and head."""
    return ~np.isnan(by_head(labels)[0])


def _mean(labels: Array) -> Array:
    mean = labels.mean(axis=0)
    # a trace that nothing attends to has labels of zero, and stays at zero
    return np.where(mean == 0, 1.0, mean)
