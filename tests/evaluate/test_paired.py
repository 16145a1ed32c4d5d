"""Paired tests against going through all cases."""

from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynts.errors import DyntsError
from dynts.evaluate.paired import compare, holm
from dynts.evaluate.results import ArmResults
from evaluate_samples import sample


def arm(correct: list[list[bool]], name: str = "rkv", first: int = 0) -> ArmResults:
    """One list of verdicts a question."""
    samples = [
        sample(number, problem_id=f"{first + question:03d}", correct=right)
        for question, flags in enumerate(correct)
        for number, right in enumerate(flags)
    ]
    return ArmResults("b", name, None, 0, None, samples, {"settings": {}}, Path("x"))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=40)
def test_mcnemar(pairs: list[tuple[bool, bool]]) -> None:
    found = compare(arm([[one] for one, _ in pairs]), arm([[other] for _, other in pairs]))
    better = sum(one and not other for one, other in pairs)
    worse = sum(other and not one for one, other in pairs)
    decided = better + worse
    # twice the smaller tail of a fair coin
    tail = sum(comb(decided, heads) for heads in range(min(better, worse) + 1)) / 2**decided
    assert found.test == "McNemar"
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert found.difference.value == pytest.approx((better - worse) / len(pairs))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_permutation(counts: list[tuple[int, int]]) -> None:
    """Three samples a question in one arm, two in the other."""
    mine = arm([[True] * right + [False] * (3 - right) for right, _ in counts])
    theirs = arm([[True] * right + [False] * (2 - right) for _, right in counts])
    found = compare(mine, theirs)
    differences = np.array([one / 3 - other / 2 for one, other in counts])
    sums = [abs((differences * signs).sum()) for signs in product([-1, 1], repeat=len(differences))]
    extreme = sum(each >= abs(differences.sum()) - 1e-9 for each in sums)
    assert found.test == "permutation"
    assert found.p == pytest.approx(extreme / len(sums))
    assert found.difference.low <= found.difference.value <= found.difference.high


def test_an_arm_is_not_better_than_itself() -> None:
    mine = arm([[True], [False], [True]])
    found = compare(mine, mine)
    assert (found.p, found.difference.value, found.verdict(found.p)) == (1.0, 0.0, "noise")


def test_a_clear_difference_has_a_side() -> None:
    good, bad = arm([[True]] * 20), arm([[False]] * 20)
    assert compare(good, bad).verdict(1e-5) == "better"
    assert compare(bad, good).verdict(1e-5) == "worse"
    # significant alone, but not among so many
    assert compare(good, bad).verdict(0.2) == "noise"


def test_true_differences_of_nothing_are_noise() -> None:
    source = np.random.default_rng(0)
    found = []
    for _ in range(60):
        flags = source.random((2, 80)) < 0.6
        found.append(compare(arm([[bool(f)] for f in flags[0]]), arm([[bool(f)] for f in flags[1]])))
    assert sum(each.verdict(each.p) != "noise" for each in found) <= 7  # 3 expected


def test_only_common_questions_count() -> None:
    found = compare(arm([[True], [True], [False]]), arm([[False], [False]], first=1))
    assert found.questions == 2
    assert found.difference.value == 0.5
    with pytest.raises(DyntsError, match="no question in common"):
        compare(arm([[True]]), arm([[True]], first=1))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p_values: list[float]) -> None:
    """An adjusted p is the smallest level at which the step-down procedure rejects."""
    adjusted = holm(p_values)
    ordered = sorted(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        rank = ordered.index(p)
        steps = [min(1.0, (len(ordered) - before) * ordered[before]) for before in range(rank + 1)]
        assert found == pytest.approx(max(steps))
        assert found >= p


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
