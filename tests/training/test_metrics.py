"""Properties of label transforms, metrics and trivial predictors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynts.errors import DyntsError
from dynts.training.dataset import Example, Tokens, split_by_question
from dynts.training.metrics import METRICS, average, baseline_metrics, top_overlap, trace_metrics
from dynts.training.shards import ShardFolder
from dynts.training.transforms import TRANSFORMS, transform_labels

# attention weights lie in [0, 1]; the smallest that float32 softmax gives are about 1e-38
weights = st.floats(0, 1, width=32, allow_subnormal=False)
labels = arrays.arrays(np.float32, st.integers(1, 60), elements=weights)
distinct = arrays.arrays(np.float32, st.integers(2, 60), elements=weights, unique=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(values=labels)
def test_transforms_keep_the_order(transform: str, values: np.ndarray) -> None:
    result = transform_labels(values, transform)
    order = np.argsort(values, kind="stable")
    before, after = np.diff(values[order]), np.diff(result[order])
    assert (after[before == 0] == 0).all()
    assert (after[before > 0] > 0).all()
    assert np.isfinite(result).all()
    assert (result >= 0).all(), "the predictor cannot give negative scores"


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(values=labels, scale=st.sampled_from([2.0**-20, 0.25, 1024.0]))
def test_transforms_need_no_scale(transform: str, values: np.ndarray, scale: float) -> None:
    np.testing.assert_allclose(
        transform_labels(values.astype(np.float64) * scale, transform), transform_labels(values, transform), rtol=1e-9
    )


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_labels_that_are_missing_stay_missing_and_do_not_count(transform: str) -> None:
    result = transform_labels([0.3, np.nan, 0.1, 0.2], transform)
    assert np.isnan(result).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(result[[0, 2, 3]], transform_labels([0.3, 0.1, 0.2], transform))
    assert np.isnan(transform_labels([np.nan, np.nan], transform)).all()


def test_an_unknown_transform_is_refused() -> None:
    with pytest.raises(DyntsError, match="'sqrt': choose from rank, power, log"):
        transform_labels([0.1], "sqrt")


@given(values=distinct)
def test_perfect_and_reversed_scores(values: np.ndarray) -> None:
    ranks = transform_labels(values, "rank")
    perfect, worst = trace_metrics(ranks, ranks), trace_metrics(-ranks, ranks)
    assert perfect["mse"] == 0
    assert perfect["kendall_tau"] == pytest.approx(1)
    assert perfect["spearman"] == pytest.approx(1)
    assert perfect["top20_overlap"] == perfect["top30_overlap"] == 1
    assert worst["kendall_tau"] == pytest.approx(-1)


@given(values=distinct, seed=st.integers(0, 100))
def test_order_metrics_ignore_the_scale_of_the_scores(values: np.ndarray, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(len(values)).astype(float)
    plain, cubed = trace_metrics(scores, values), trace_metrics(scores**3 + 5, values)
    for name in set(METRICS) - {"mse"}:
        assert plain[name] == pytest.approx(cubed[name])


def test_values_by_hand() -> None:
    found = trace_metrics([1, 2, 4, 3, np.inf], [1, 2, 3, 4, np.nan])
    assert found["mse"] == pytest.approx(0.5)
    assert found["kendall_tau"] == pytest.approx(4 / 6)
    assert found["spearman"] == pytest.approx(0.8)
    assert top_overlap([9, 8, 1, 1, 1, 1, 1, 1, 1, 7], [9, 1, 8, 1, 1, 1, 1, 1, 1, 7], 0.3) == pytest.approx(2 / 3)
    assert average([found, {**found, "mse": 1.5}])["mse"] == pytest.approx(1)


def test_a_constant_score_orders_nothing() -> None:
    found = trace_metrics([1, 1, 1], [1, 2, 3])
    assert found["kendall_tau"] == found["spearman"] == 0


def tokens(targets: list[float], ids: list[int]) -> Tokens:
    return Tokens(torch.empty(0), np.arange(len(ids)), np.array(ids), np.array(targets, dtype=float))


def test_trivial_predictors_see_only_what_they_should() -> None:
    # the target is a function of the token's identity, and positions say nothing
    generator = np.random.default_rng(0)
    traces = []
    for _ in range(20):
        ids = generator.permutation(40)
        traces.append(tokens((ids / 40).tolist(), ids.tolist()))
    rows = baseline_metrics(traces[:15], traces[15:], seed=0)
    assert all(len(values) == 5 for values in rows.values())
    found = {name: average(values) for name, values in rows.items()}
    assert found["token_identity"]["kendall_tau"] == pytest.approx(1)
    assert abs(found["position_only"]["kendall_tau"]) < 0.3
    assert abs(found["random"]["kendall_tau"]) < 0.3


def test_trivial_predictors_predict_means_over_all_training_traces() -> None:
    # token 9 was seen without a label, tokens 1, 4 and 99 never; token 3 has a mean of 0.25, all tokens one of 0.5
    train = [tokens([0.5, 1.0, np.nan], [3, 5, 9]), tokens([0.0, 0.5, 1.0], [3, 7, 5])]
    held_out = tokens([0.25, 0.6, 0.6, 0.6, 0.6, 1.0], [3, 1, 4, 9, 99, 5])
    found = baseline_metrics(train, [held_out], seed=0)
    assert found["token_identity"][0]["mse"] == pytest.approx(0)


def example(index: int, question: str) -> Example:
    return Example(ShardFolder(Path("unread"), {}), index, "answer", "rank", question, known=1)


@given(
    questions=st.lists(st.integers(0, 8), min_size=2, max_size=40), share=st.floats(0.05, 0.6), seed=st.integers(0, 9)
)
def test_no_question_is_on_both_sides(questions: list[int], share: float, seed: int) -> None:
    examples = [example(index, str(key)) for index, key in enumerate(questions)]
    if len(set(questions)) < 2:
        with pytest.raises(DyntsError, match="cannot be split"):
            split_by_question(examples, share, seed)
        return
    train, held_out = split_by_question(examples, share, seed)
    assert train
    assert held_out
    assert not {item.question for item in train} & {item.question for item in held_out}
    assert sorted(item.index for item in [*train, *held_out]) == list(range(len(questions)))


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(DyntsError, match="held_out must lie between 0 and 1"):
        split_by_question([example(0, "question")], 1.0, 0)
