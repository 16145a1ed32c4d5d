"""How sure a mean over questions is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

RESAMPLES = 9_999
SEED = 0
_AT_A_TIME = 2_000_000
"""Numbers drawn at a time, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


def mean_share(shares: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of one share a question, such as how many of its samples are right.

    The interval is a percentile bootstrap over the questions, seeded. Where all questions are alike there is nothing to
    resample, and the bootstrap would claim certainty: the interval is then Wilson's for so many questions.

    Args:
        shares: [questions], at least one, each from 0 to 1.
    """
    value = float(shares.mean())
    if np.ptp(shares) > 0:
        return _bootstrapped(shares)
    found = wilson(round(value * len(shares)), len(shares))
    return Estimate(value, min(found.low, value), max(found.high, value))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and its standard error, which is 0 for one value."""
    return float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else 0.0


def wilson(right: int, total: int) -> Estimate:
    """Return the share of right answers, with Wilson's interval.

    Args:
        right: how many answers are right.
        total: how many there are, at least one.
    """
    found = stats.binomtest(right, total).proportion_ci(method="wilson")
    return Estimate(right / total, float(found.low), float(found.high))


def mean_difference(differences: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of one difference of shares a question, with an interval as in `mean_share`.

    Args:
        differences: [questions], at least one, each from -1 to 1.
    """
    if np.ptp(differences) > 0:
        return _bootstrapped(differences)
    value, size = float(differences[0]), mean_share(np.abs(differences))
    if value == 0:
        return Estimate(0.0, -size.high, size.high)
    return Estimate(value, size.low, size.high) if value > 0 else Estimate(value, -size.high, -size.low)


def _bootstrapped(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean with its percentile bootstrap interval."""
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_A_TIME // len(values)),
        method="percentile",
        random_state=SEED,
    ).confidence_interval
    return Estimate(float(values.mean()), float(found.low), float(found.high))
