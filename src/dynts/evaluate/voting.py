"""maj@k: the answer that most of k samples agree on.

The votes are answers. Votes on whether samples are correct would need the gold answer, and would let wrong answers that
differ from one another outvote a right one that nobody disputes.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dynts.evaluate.results import Sample
from dynts.grading.grader import Grader, Verdict
from dynts.grading.normalize import as_whole_numbers

SUBSETS = 10_000
"""Of k samples: up to so many are all counted, of more so many are drawn."""

Same = Callable[[str, str], bool]


class AnswerComparison:
    """Whether two answers, without their boxes, say the same; what was compared once is remembered.

    Args:
        grader: compares what is neither equal nor whole numbers, or tuples of them.
    """

    def __init__(self, grader: Grader) -> None:
        self.grader = grader
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, first: str, second: str) -> bool:
        """Compare two answers, in either order: the grader reads its second argument more strictly."""
        if first == second:
            return True
        numbers = as_whole_numbers(first), as_whole_numbers(second)
        if None not in numbers:
            return numbers[0] == numbers[1]
        pair = min(first, second), max(first, second)
        if pair not in self._known:
            self._known[pair] = self._grade(*pair) or self._grade(*reversed(pair))
        return self._known[pair]

    def _grade(self, given: str, gold: str) -> bool:
        return self.grader.grade(f"\\boxed{{{given}}}", gold) is Verdict.CORRECT


def answer_groups(answers: Sequence[str | None], same: Same) -> list[int]:
    """Number the answers: equal numbers for answers that say the same, -1 for none.

    An answer joins the first group with whose first member it agrees.

    Args:
        answers: None where a sample gave none.
        same: whether two answers say the same.
    """
    founders: list[str] = []
    groups = []
    for answer in answers:
        if answer is None:
            groups.append(-1)
            continue
        group = next((number for number, founder in enumerate(founders) if same(answer, founder)), len(founders))
        if group == len(founders):
            founders.append(answer)
        groups.append(group)
    return groups


def maj_at(samples: Sequence[Sample], groups: Sequence[int], k: int) -> float:
    """Return the probability that the majority of k of a question's samples is right.

    Among answers with equally many votes the one that came first wins. A sample without an answer does not vote, and a
    subset without a vote is wrong. A majority is right if the earliest of its samples is. Exact up to `SUBSETS`
    subsets, otherwise the mean over so many random ones, seeded.

    Args:
        samples: of one question, in their order.
        groups: of their answers, see `answer_groups`.
        k: how many vote, at most all.
    """
    count = len(samples)
    correct = np.array([sample.correct for sample in samples])
    voters = np.array(groups)
    # [subset, sample, group]: who votes for what
    votes = _subsets(count, k)[:, :, None] & (voters[:, None] == np.arange(max(0, *groups) + 1))
    tally = votes.sum(axis=1)
    earliest = votes.argmax(axis=1)
    winner = (tally * count - earliest).argmax(axis=1)
    subset = np.arange(len(votes))
    return float((correct[earliest[subset, winner]] & (tally[subset, winner] > 0)).mean())


@lru_cache(maxsize=16)
def _subsets(count: int, k: int) -> npt.NDArray[np.bool_]:
    """bool [subsets, count]: which samples are in."""
    if math.comb(count, k) <= SUBSETS:
        chosen = np.array(list(combinations(range(count), k)))
    else:
        drawn = np.random.default_rng(0).random((SUBSETS, count))
        chosen = np.argpartition(drawn, k, axis=1)[:, :k]
    member = np.zeros((len(chosen), count), dtype=bool)
    np.put_along_axis(member, chosen, True, axis=1)
    return member
