"""Training: reproducible, honest about held-out questions, and never half-saved."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from dynts.errors import DyntsError
from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.training import fit as fitting
from dynts.training.checkpoint import TrainingState, _warmup_cosine
from dynts.training.dataset import Example, Tokens, load_examples, split_by_question
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, compare_transforms, save_predictor, train_predictor
from made_up import make_up

QUICK = TrainConfig(epochs=2, batch_traces=4)


@pytest.fixture
def learnable(tmp_path: Path) -> ShardFolder:
    return make_up(tmp_path / "made-up", traces=60)


@pytest.mark.quick
@pytest.mark.parametrize("transform", ["rank", "power", "log", "linear"])
def test_what_can_be_learnt_is_learnt(learnable: ShardFolder, transform: str) -> None:
    config = TrainConfig(transform=transform, epochs=20, batch_traces=2, learning_rate=1e-2)
    result = train_predictor(learnable, config)
    assert result.metrics["predictor"]["kendall_tau"] > 0.7
    assert result.metrics["predictor"]["top30_overlap"] > 0.7
    for trivial in ("position_only", "token_identity", "random"):
        assert abs(result.metrics[trivial]["kendall_tau"]) < 0.2


def test_the_same_seed_gives_the_same_predictor(shards: ShardFolder) -> None:
    torch.manual_seed(1)
    first = train_predictor(shards, QUICK)
    torch.manual_seed(2)
    second = train_predictor(shards, QUICK)
    other = train_predictor(shards, replace(QUICK, seed=1))
    for a, b in zip(first.predictor.parameters(), second.predictor.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert first.metrics == second.metrics
    assert not torch.equal(next(first.predictor.parameters()), next(other.predictor.parameters()))


def test_micro_batches_do_not_change_the_gradient(shards: ShardFolder) -> None:
    # one step: later steps would multiply rounding
    config = TrainConfig(label="future", epochs=1, batch_traces=12)
    results = [train_predictor(shards, replace(config, micro_traces=size)).predictor for size in (1, 5, 12)]
    for a, *others in zip(*(predictor.parameters() for predictor in results), strict=True):
        for b in others:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_held_out_traces_do_not_influence_the_weights(shards: ShardFolder) -> None:
    before = train_predictor(shards, QUICK)
    _, held_out = split_by_question(load_examples([shards], "answer", "rank"), QUICK.held_out, QUICK.seed)
    for example in held_out:
        shard = shards.read(example.index)
        shards.write(example.index, replace(shard, hidden=torch.randn_like(shard.hidden)))
    after = train_predictor(shards, QUICK)
    for a, b in zip(before.predictor.parameters(), after.predictor.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert before.metrics["predictor"] != after.metrics["predictor"]


def test_tokens_without_a_future_label_are_left_out(shards: ShardFolder) -> None:
    index = 0
    shard = shards.read(index)
    labels = {name: values.clone() for name, values in shard.labels.items()}
    labels["future"][:] = torch.nan
    shards.write(index, replace(shard, labels=labels))
    assert index not in [example.index for example in load_examples([shards], "future", "rank")]
    result = train_predictor(shards, replace(QUICK, label="future"))
    assert all(weight.isfinite().all() for weight in result.predictor.parameters())
    assert all(math.isfinite(value) for row in result.metrics.values() for value in row.values())


def test_labels_of_a_subset_are_those_of_the_whole_trace(shards: ShardFolder) -> None:
    whole = load_examples([shards], "answer", "rank")[0].read().targets
    shard = shards.read(0)
    rows = torch.tensor([1, 4, 5])
    shards.write(0, replace(shard, hidden=shard.hidden[rows], rows=rows))
    few = load_examples([shards], "answer", "rank")[0]
    assert few.known == 3
    np.testing.assert_array_equal(few.read().targets, whole[[1, 4, 5]])


def test_the_checkpoint_tells_where_it_comes_from(shards: ShardFolder, model: PreTrainedModel, tmp_path: Path) -> None:
    reports: list[int] = []
    result = train_predictor(
        shards, replace(QUICK, label="future"), report=lambda epoch, loss, m: reports.append(epoch)
    )
    save_predictor(result.predictor, tmp_path / "predictor")
    loaded = ImportancePredictor.from_pretrained(tmp_path / "predictor")
    loaded.check_model(model)
    assert reports == [1, 2]
    assert (loaded.config.label, loaded.config.future_window, loaded.config.transform) == ("future", 4, "rank")
    assert loaded.config.markers is not None
    assert loaded.config.metrics == result.metrics
    assert loaded.config.training["train_traces"] == result.train_traces == 10
    hidden = shards.read(0).hidden
    torch.testing.assert_close(loaded(hidden), result.predictor(hidden), rtol=0, atol=0)


def test_transforms_are_compared_without_the_held_out_questions(
    shards: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, held_out = split_by_question(load_examples([shards], "answer", "rank"), QUICK.held_out, QUICK.seed)
    read: set[int] = set()
    original = Example.read

    def recorded(example: Example) -> Tokens:
        read.add(example.index)
        return original(example)

    monkeypatch.setattr(Example, "read", recorded)
    assert set(compare_transforms(shards, QUICK)) == {"rank", "power", "log", "linear"}
    assert read
    assert not read & {example.index for example in held_out}


def test_the_schedule_warms_up_and_decays() -> None:
    factors = [_warmup_cosine(step, 100) for step in range(101)]
    assert factors[9] == factors[10] == 1
    assert factors[0] == pytest.approx(0.1)
    assert factors[100] == pytest.approx(0, abs=1e-9)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize(("traces", "expected"), [(7000, 70), (30_000, 256), (375, 3), (10, 1)])
def test_the_default_batch_shrinks_with_the_data(traces: int, expected: int) -> None:
    assert fitting.batch_size(TrainConfig(), traces) == expected
    assert fitting.batch_size(TrainConfig(batch_traces=256), traces) == 256


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_traces": 0}, "batch_traces must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"transform": "sqrt"}, "unknown transform 'sqrt'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(DyntsError, match=problem):
        TrainConfig(**settings)


def test_bad_folders_are_refused(shards: ShardFolder) -> None:
    with pytest.raises(DyntsError, match="holds the labels answer, future, not 'past'"):
        train_predictor(shards, replace(QUICK, label="past"))
    shards.file(2).write_bytes(b"garbage")
    with pytest.raises(DyntsError, match=r"000002\.safetensors is missing or damaged.*dynts label"):
        train_predictor(shards, QUICK)
    shards.file(2).unlink()
    with pytest.raises(DyntsError, match="incomplete, 1 of 12 shards are missing"):
        train_predictor(shards, QUICK)


def test_a_diverging_run_ends(shards: ShardFolder) -> None:
    with pytest.raises(DyntsError, match="lower the learning rate"):
        train_predictor(shards, TrainConfig(epochs=60, batch_traces=1, learning_rate=1e30))


def test_an_existing_predictor_is_replaced_only_when_asked(tmp_path: Path) -> None:
    small, large = (ImportancePredictor(PredictorConfig(hidden_size=size)) for size in (4, 8))
    out = tmp_path / "predictor"
    save_predictor(small, out)
    with pytest.raises(DyntsError, match="--overwrite"):
        save_predictor(large, out)
    save_predictor(large, out, overwrite=True)
    assert ImportancePredictor.from_pretrained(out).config.hidden_size == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(DyntsError, match="something else than a predictor"):
        save_predictor(small, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "predictor"]


def test_a_failed_save_leaves_the_old_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "predictor"
    save_predictor(ImportancePredictor(PredictorConfig(hidden_size=4)), out)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynts.predictor.model.save_file", full_disk)
    with pytest.raises(DyntsError, match="No space left"):
        save_predictor(ImportancePredictor(PredictorConfig(hidden_size=8)), out, overwrite=True)
    assert ImportancePredictor.from_pretrained(out).config.hidden_size == 4
    assert [path.name for path in tmp_path.iterdir()] == ["predictor"]


def test_bf16_computes_in_bf16_and_keeps_everything_else_in_float32(
    learnable: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=4, batch_traces=2, learning_rate=1e-2)
    losses: list[tuple[torch.dtype, torch.dtype]] = []
    products: list[torch.dtype] = []
    states: list[TrainingState] = []
    original, start = fitting.mse_loss, TrainingState.start

    def loss(scores: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        losses.append((scores.dtype, targets.dtype))
        return original(scores, targets, reduction=reduction)

    def started(*arguments: object) -> TrainingState:
        states.append(start(*arguments))
        return states[-1]

    def product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result = linear(hidden, weight)
        products.append(result.dtype)
        return result

    linear = torch.nn.functional.linear
    monkeypatch.setattr("dynts.predictor.model.linear", product)
    monkeypatch.setattr(fitting, "mse_loss", loss)
    monkeypatch.setattr(TrainingState, "start", started)
    exact = train_predictor(learnable, config)
    assert set(products) == {torch.float32}
    products.clear()
    rounded = train_predictor(learnable, replace(config, bf16=True))
    assert torch.bfloat16 in products
    assert set(losses) == {(torch.float32, torch.float32)}
    state = states[-1]
    kept = [*state.predictor.parameters(), *(value for row in state.optimizer.state.values() for value in row.values())]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    ours, theirs = (result.metrics["predictor"]["kendall_tau"] for result in (rounded, exact))
    assert theirs > 0.5
    assert ours == pytest.approx(theirs, abs=0.05)
