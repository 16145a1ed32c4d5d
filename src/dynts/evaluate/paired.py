"""Is one arm better than another on the same questions, or is the difference noise?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from dynts.errors import DyntsError
from dynts.evaluate.intervals import RESAMPLES, SEED, Estimate, mean_difference
from dynts.evaluate.metrics import by_question, share_correct
from dynts.evaluate.results import ArmResults

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms on the questions that both have answered.

    Attributes:
        arm: the one.
        other: the one that it is compared with.
        questions: that both have answered.
        difference: Pass@1 of the one less that of the other.
        p: probability of a difference at least as large if there were none.
        test: "McNemar" or "permutation".
    """

    arm: ArmResults
    other: ArmResults
    questions: int
    difference: Estimate
    p: float
    test: str

    def verdict(self, adjusted: float) -> str:
        """Return "better", "worse", or "noise": the interval contains 0, or the adjusted p is not significant.

        Args:
            adjusted: the p, corrected for the other comparisons.
        """
        if self.difference.low <= 0 <= self.difference.high or adjusted >= SIGNIFICANT:
            return "noise"
        return "better" if self.difference.value > 0 else "worse"


def compare(arm: ArmResults, other: ArmResults) -> Comparison:
    """Compare two arms, question by question.

    With one sample a question the test is McNemar's, exact; otherwise the signs of the questions' differences are
    permuted (all ways where there are fewer than 10,000, else as many random ones, seeded). The interval is a bootstrap
    over the questions.

    Args:
        arm: the one in question.
        other: what it is compared with.

    Raises:
        DyntsError: the arms have no question in common.
    """
    mine, theirs = by_question(arm.samples), by_question(other.samples)
    common = [question for question in mine if question in theirs]
    if not common:
        raise DyntsError(
            f"{arm.method} ({arm.folder}) and {other.method} ({other.folder}) have answered no question in common: "
            "compare arms of the same benchmark, and finish them"
        )
    differences = np.array([share_correct(mine[question]) - share_correct(theirs[question]) for question in common])
    counts = {len(samples[question]) for question in common for samples in (mine, theirs)}
    single = counts == {1}
    return Comparison(
        arm=arm,
        other=other,
        questions=len(common),
        difference=mean_difference(differences),
        p=_mcnemar(differences) if single else _permutation(differences, math.lcm(*counts)),
        test="McNemar" if single else "permutation",
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979), in their order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _mcnemar(differences: npt.NDArray[np.float64]) -> float:
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _permutation(differences: npt.NDArray[np.float64], denominator: int) -> float:
    # whole numbers, so that equal sums are equal
    numerators = np.rint(differences * denominator)
    # a question without a difference is the same with either sign, and a single one is as extreme with either
    decided = numerators[numerators != 0]
    if len(decided) < 2:
        return 1.0
    found = stats.permutation_test(
        (decided,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        random_state=SEED,
    )
    return float(found.pvalue)
