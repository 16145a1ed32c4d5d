"""Metrics against counting every case, and intervals against what they promise."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.evaluate.intervals import mean_difference, mean_share
from dynts.evaluate.metrics import pass_at, summarize
from dynts.evaluate.results import ArmResults, Sample
from dynts.evaluate.voting import SUBSETS, AnswerComparison, answer_groups, maj_at
from dynts.grading.grader import Grader
from dynts.methods import RKV
from evaluate_samples import sample


def equal(first: str, second: str) -> bool:
    return first == second


def answered(answers: list[str | None], right: str) -> list[Sample]:
    return [sample(number, answer=text, correct=text == right) for number, text in enumerate(answers)]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_counts_subsets(correct: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(combinations(correct, k))
    assert pass_at(len(correct), sum(correct), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def count_majorities(answers: list[str | None], right: str, k: int) -> float:
    """By going through all subsets."""
    won = 0
    for chosen in combinations(answers, k):
        votes = Counter(text for text in chosen if text is not None)
        if votes:  # most_common keeps the order of first appearance among equals
            won += votes.most_common(1)[0][0] == right
    return won / comb(len(answers), k)


ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=7)


@given(ANSWERS, st.data())
def test_maj_counts_subsets(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    samples = answered(answers, "1")
    groups = answer_groups(answers, equal)
    assert maj_at(samples, groups, k) == pytest.approx(count_majorities(answers, "1", k))


@given(ANSWERS)
def test_maj_of_one_is_pass_at_1(answers: list[str | None]) -> None:
    samples = answered(answers, "1")
    share = sum(each.correct for each in samples) / len(samples)
    assert maj_at(samples, answer_groups(answers, equal), 1) == pytest.approx(share)


def test_many_subsets_are_drawn() -> None:
    answers: list[str | None] = ["1", "2", "1", "3", None, "2", "2", "1", "1", "2", "3", "1", "2", None, "1", "2"]
    assert comb(len(answers), 8) > SUBSETS
    found = maj_at(answered(answers, "1"), answer_groups(answers, equal), 8)
    assert found == pytest.approx(count_majorities(answers, "1", 8), abs=0.02)
    assert found == maj_at(answered(answers, "1"), answer_groups(answers, equal), 8)


def test_votes_are_answers_not_verdicts() -> None:
    """Two agree on the right answer and three are wrong in different ways: a vote on verdicts would lose."""
    answers: list[str | None] = ["7", "1", "8", "1", "9"]
    assert maj_at(answered(answers, "1"), answer_groups(answers, equal), 5) == 1.0


def test_a_tie_goes_to_the_earliest() -> None:
    for answers, expected in ((["1", "2", "2", "1"], 1.0), (["2", "1", "1", "2"], 0.0), ([None, None], 0.0)):
        assert maj_at(answered(answers, "1"), answer_groups(answers, equal), len(answers)) == expected


@pytest.fixture(scope="module")
def same() -> Iterator[AnswerComparison]:
    with Grader() as grader:
        yield AnswerComparison(grader)


def test_equivalent_answers_vote_together(same: AnswerComparison) -> None:
    answers = [r"\frac{1}{2}", "0.5", None, "12", "1,200", "1200", "1/2", "2"]
    assert answer_groups(answers, same) == [0, 0, -1, 1, 2, 2, 0, 3]


def test_answers_that_cannot_be_read_stand_alone(same: AnswerComparison) -> None:
    answers = [r"\frac{", "}{", "?", r"\frac{", "9^{9^{9}}"]
    assert answer_groups(answers, same)[0] == answer_groups(answers, same)[3]
    assert len(set(answer_groups(answers, same))) == 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.booleans(),
            st.integers(1, 50),
            st.sampled_from("01"),
            st.floats(0.5, 9),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_summary_of_samples(drawn: list[tuple[str, bool, int, str, float, bool]]) -> None:
    samples = [
        sample(
            number,
            problem_id=problem,
            correct=correct,
            answer=f"{correct}",
            generated_tokens=tokens,
            batch=batch,
            run_seconds=seconds + number,
            seconds=seconds,
            finished=finished,
            compactions=number,
            peak_tokens=10 * number,
            mean_tokens=5.0 * number,
            peak_bytes=7 * number,
        )
        for number, (problem, correct, tokens, batch, seconds, finished) in enumerate(drawn)
    ]
    found = summarize(
        ArmResults("b", "rkv", RKV, 0, CompressionConfig(30, 5), samples, {"settings": {}}, Path("x")), equal, None
    )
    questions = {row[0] for row in drawn}
    shares = []
    for question in questions:
        flags = [row[1] for row in drawn if row[0] == question]
        shares.append(sum(flags) / len(flags))
    runs = {row[3]: max(other[4] + at for at, other in enumerate(drawn) if other[3] == row[3]) for row in drawn}
    last = len(drawn) - 1
    assert (found.questions, found.samples) == (len(questions), len(drawn))
    assert found.pass_at_1.value == pytest.approx(sum(shares) / len(shares))
    assert found.pass_at_1.low <= found.pass_at_1.value <= found.pass_at_1.high
    assert found.pass_at[1] == pytest.approx(found.pass_at_1.value) == pytest.approx(found.maj_at[1])
    assert max(found.pass_at) == min(Counter(row[0] for row in drawn).values())
    assert found.mean_length == pytest.approx(sum(row[2] for row in drawn) / len(drawn))
    assert found.truncated == pytest.approx(sum(not row[5] for row in drawn) / len(drawn))
    assert found.latency == pytest.approx(sum(row[4] for row in drawn) / len(drawn))
    assert found.tokens_per_second == pytest.approx(sum(row[2] for row in drawn) / sum(runs.values()))
    assert (found.peak_tokens, found.peak_bytes) == (10 * last, 7 * last)
    assert (found.compactions, found.mean_tokens, found.mean_peak_bytes) == (last / 2, 2.5 * last, 3.5 * last)
    assert found.flops is None


def test_no_samples() -> None:
    with pytest.raises(DyntsError, match="holds no samples of rkv"):
        summarize(ArmResults("b", "rkv", RKV, 0, None, [], {"settings": {}}, Path("x")), equal, None)


@pytest.mark.parametrize("share", [0.5, 0.85])
def test_intervals_cover_the_truth(share: float) -> None:
    """Of 95% intervals from 150 made-up benchmarks; a bootstrap over 60 questions falls short a little."""
    source = np.random.default_rng(1)
    intervals = [mean_share((source.random(60) < share).astype(float)) for _ in range(150)]
    covered = sum(each.low <= share <= each.high for each in intervals)
    assert 0.88 <= covered / 150 <= 0.995


def test_intervals_are_the_same_every_time() -> None:
    values = np.array([0.0, 0.5, 1.0, 1.0, 0.25])
    assert mean_share(values) == mean_share(values)


def test_questions_all_alike_are_no_certainty() -> None:
    # Wilson's interval of 40 of 40: 40 / (40 + z^2)
    certain = mean_share(np.ones(40))
    assert (certain.value, certain.high) == (1.0, 1.0)
    assert certain.low == pytest.approx(40 / (40 + 1.959964**2), abs=1e-4)
    none = mean_share(np.zeros(40))
    assert (none.value, none.low, none.high) == (0.0, 0.0, pytest.approx(1 - certain.low))
    single = mean_share(np.array([0.1]))
    assert single.low <= 0.1 <= single.high
    assert single.high - single.low > 0.5


@given(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), st.integers(1, 50))
def test_equal_differences(difference: float, questions: int) -> None:
    found = mean_difference(np.full(questions, difference))
    mirrored = mean_difference(np.full(questions, -difference))
    assert (mirrored.low, mirrored.high) == (-found.high, -found.low)
    assert -1 <= found.low <= difference <= found.high <= 1
    assert found.low < found.high
