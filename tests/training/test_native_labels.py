"""Labels, targets and predictors of each layer and KV head, from shards to a saved predictor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.analyze.importance import describe_shards
from dynts.analyze.prediction import choose_traces, measure_prediction
from dynts.errors import DyntsError
from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.training.dataset import Tokens, load_examples
from dynts.training.labelling import label_traces
from dynts.training.metrics import BASELINES, METRICS, baseline_scores, trace_metrics
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, save_predictor, train_predictor
from dynts.training.transforms import TRANSFORMS, transform_labels
from gradients import check_averaged_gradients
from made_up import make_up
from tiny_traces import build_model

LAYERS, HEADS = 2, 3
NATIVE = "answer-native"


@pytest.fixture
def made_up(tmp_path: Path) -> ShardFolder:
    """Shards in which every other head wants what the one before does not."""
    folder = make_up(tmp_path / "made-up", traces=40, labels=["answer", NATIVE])
    for index in folder.indices:
        shard = folder.read(index)
        label = shard.labels["answer"]
        heads = [label if head % 2 else 1e-4 - label for head in range(LAYERS * HEADS)]
        native = torch.stack(heads, dim=1).view(-1, LAYERS, HEADS)
        folder.write(index, replace(shard, labels={**shard.labels, NATIVE: native}))
    return folder


shapes = st.tuples(st.integers(2, 30), st.integers(1, 3), st.integers(1, 3))
native_labels = arrays.arrays(np.float64, shapes, elements=st.floats(0, 1, allow_subnormal=False))


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(values=native_labels, missing=st.integers(0, 3))
def test_each_head_is_scaled_by_itself(transform: str, values: np.ndarray, missing: int) -> None:
    values[len(values) - min(missing, len(values) - 1) :] = np.nan
    found = transform_labels(values, transform)
    for layer, head in np.ndindex(values.shape[1:]):
        expected = transform_labels(values[:, layer, head], transform)
        np.testing.assert_allclose(found[:, layer, head], expected, rtol=1e-12)


@given(values=native_labels, seed=st.integers(0, 99))
def test_metrics_are_the_means_over_heads(values: np.ndarray, seed: int) -> None:
    scores = np.random.default_rng(seed).random(values.shape)
    heads = [trace_metrics(scores[:, i, j], values[:, i, j]) for i, j in np.ndindex(values.shape[1:])]
    found = trace_metrics(scores, values)
    for name in METRICS:
        assert found[name] == pytest.approx(np.mean([row[name] for row in heads]), abs=1e-12)


def test_trivial_predictors_learn_every_head_by_itself() -> None:
    generator = np.random.default_rng(0)

    def tokens(count: int) -> Tokens:
        targets = generator.random((count, LAYERS, HEADS))
        targets[-2:] = np.nan
        return Tokens(torch.empty(count, 1), np.arange(count), generator.integers(0, 9, count), targets)

    train, held_out = [tokens(40), tokens(25)], [tokens(30)]
    [(_, found)] = baseline_scores(train, held_out, seed=0)
    for layer, head in np.ndindex(LAYERS, HEADS):
        alone = [[replace(item, targets=item.targets[:, layer, head]) for item in part] for part in (train, held_out)]
        [(_, expected)] = baseline_scores(*alone, seed=0)
        for name in BASELINES[:2]:
            np.testing.assert_allclose(found[name][:, layer, head], expected[name], rtol=1e-12)


@pytest.mark.quick
def test_heads_that_disagree_are_learnt(made_up: ShardFolder, tmp_path: Path) -> None:
    config = TrainConfig(label=NATIVE, epochs=20, batch_traces=2, learning_rate=1e-2)
    result = train_predictor(made_up, config)
    assert result.metrics["predictor"]["kendall_tau"] > 0.7
    assert abs(result.metrics["token_identity"]["kendall_tau"]) < 0.2
    assert (result.predictor.config.layers, result.predictor.config.kv_heads) == (LAYERS, HEADS)
    save_predictor(result.predictor, tmp_path / "predictor")
    loaded = ImportancePredictor.from_pretrained(tmp_path / "predictor")
    hidden = torch.randn(5, 4, 8)
    scores = loaded(hidden, native=True)
    assert scores.shape == (5, 4, LAYERS, HEADS)
    torch.testing.assert_close(scores, result.predictor(hidden, native=True), rtol=0, atol=0)
    torch.testing.assert_close(loaded(hidden), scores.mean(dim=(2, 3)))
    for head in range(1, LAYERS * HEADS):
        order = scores.detach().flatten(2)[..., [0, head]].reshape(-1, 2).T
        assert (np.corrcoef(order)[0, 1] < 0) == bool(head % 2)
    assert "for each layer and KV head" in (tmp_path / "predictor" / "README.md").read_text()


def test_analysis_gives_the_metrics_of_the_training(made_up: ShardFolder) -> None:
    result = train_predictor(made_up, TrainConfig(label=NATIVE, epochs=1, batch_traces=8))
    folds, _ = choose_traces([made_up], result.predictor.config, "held-out")
    found = measure_prediction(result.predictor, folds)
    assert found.metrics == {name: pytest.approx(values) for name, values in result.metrics.items()}
    assert 0 < found.overlaps["predictor"][0] < 1
    assert sum(1 for _ in found.calibration) > 1


@pytest.mark.parametrize("traces", [5, 1])
def test_averaged_gradients_are_those_of_one_process(
    made_up: ShardFolder, monkeypatch: pytest.MonkeyPatch, traces: int
) -> None:
    shape = PredictorConfig(hidden_size=8, layers=LAYERS, kv_heads=HEADS)
    batch = load_examples([made_up], NATIVE, "rank")[:traces]
    check_averaged_gradients(batch, shape, TrainConfig(label=NATIVE), monkeypatch)


@pytest.mark.quick
def test_from_traces_to_a_predictor_of_this_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    labels = ("answer", NATIVE, "future-native")
    folder = label_traces(model, tokenizer, traces, tmp_path / "shards", labels=labels, future_window=4)
    assert folder.manifest["settings"]["future_window"] == 4
    assert all(folder.is_whole(index) for index in folder.indices)
    predictor = train_predictor(folder, TrainConfig(label="future-native", epochs=1)).predictor
    assert predictor.config.future_window == 4
    assert (predictor.config.layers, predictor.config.kv_heads) == (3, 2)
    predictor.check_model(model)
    # as many scores, otherwise arranged
    other = replace(predictor.config, layers=2, kv_heads=3)
    with pytest.raises(DyntsError, match=r"2 layers of 3 KV heads.*3 full-attention layers of 2"):
        ImportancePredictor(other).check_model(model)


@pytest.mark.quick
def test_all_tokens_are_labelled_on_request(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    folders = {
        every: label_traces(
            model, tokenizer, traces, tmp_path / str(every), labels=("future",), future_window=4, all_tokens=every
        )
        for every in (False, True)
    }
    for index in folders[True].indices:
        every, thinking = (folders[chosen].read(index) for chosen in (True, False))
        assert len(every.ids) > len(thinking.ids)
        start = next(
            first
            for first in range(len(every.ids))
            if torch.equal(every.ids[first : first + len(thinking.ids)], thinking.ids)
        )
        span = slice(start, start + len(thinking.ids))
        torch.testing.assert_close(every.hidden[span], thinking.hidden, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            every.labels["future"][span], thinking.labels["future"], atol=1e-6, rtol=0, equal_nan=True
        )
    config = TrainConfig(label="future", epochs=1)
    for every, folder in folders.items():
        assert train_predictor(folder, config).predictor.config.all_tokens == every
    with pytest.raises(DyntsError, match=r"differ .all_tokens: False and True"):
        train_predictor([folders[False], folders[True]], config)
    with pytest.raises(DyntsError, match=r"question and answer tokens too.*without --all-tokens"):
        list(describe_shards([folders[True]], "future"))
    with pytest.raises(DyntsError, match="all_tokens"):
        label_traces(model, tokenizer, traces, tmp_path / "True", labels=("future",), future_window=4)


def test_sliding_window_layers_have_no_scores(tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path) -> None:
    folder = label_traces(build_model("gemma3"), tokenizer, traces, tmp_path / "shards", labels=(NATIVE,))
    assert load_examples([folder], NATIVE, "rank")[0].heads == (2, 2)


def test_labels_that_were_not_stored_are_named(shards: ShardFolder) -> None:
    with pytest.raises(
        DyntsError, match=r"holds the labels answer, future, not 'answer-native'.*--labels answer-native"
    ):
        train_predictor(shards, TrainConfig(label=NATIVE))
    with pytest.raises(DyntsError, match=r"not 'answer-native': give --traces .* answer,future,answer-native"):
        list(describe_shards([shards], NATIVE))


@pytest.mark.parametrize("name", ["layers", "kv_heads"])
def test_a_predictor_without_heads_is_refused(name: str) -> None:
    with pytest.raises(DyntsError, match=f"{name} must be a whole number of at least 1, got 0"):
        ImportancePredictor(PredictorConfig(hidden_size=8, **{name: 0}))
