"""Pretraining: the optimiser, the batches, and the command that makes everything from nothing."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynts.errors import DyntsError
from dynts.predictor.model import ImportancePredictor
from dynts.tiny.solve import Solution
from dynts.tiny.task import PREDICTOR, TRAINING, make_problem
from recipes.embedded_model import build as building
from recipes.embedded_model.muon import Muon, orthogonalise
from recipes.embedded_model.pretrain import Recipe, _batches, build_model, pretrain
from recipes.embedded_model.solution import write_response
from recipes.embedded_model.tokenizer import build_tokenizer


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 32, 32)])
def test_orthogonalise_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3
    assert values.median() > 0.6
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.mT @ result @ right.mT
    diagonal = core.diagonal(dim1=1, dim2=2)
    assert torch.allclose(core, torch.diag_embed(diagonal), atol=1e-4)
    assert (diagonal > 0).all()


def test_muon_minimises_a_quadratic() -> None:
    torch.manual_seed(0)
    target = torch.randn(8, 8)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    for _ in range(200):
        (weight - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - target).square().mean() < 0.05 * target.square().mean()


def test_batches_put_the_loss_on_what_the_model_writes() -> None:
    tokenizer = build_tokenizer()
    recipe = Recipe(batch_tokens=2048)
    ids, labels, count = next(_batches(tokenizer, recipe, lambda: 0))
    assert ids.shape == labels.shape
    assert ids.numel() <= 2048
    assert count == int((ids != tokenizer.pad_token_id).sum())
    think, stop = tokenizer.convert_tokens_to_ids("<think>"), tokenizer.eos_token_id
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        opened = row.index(think)
        assert wanted[:opened] == [-100] * opened
        last = row.index(stop)
        assert wanted[opened:last] == row[opened + 1 : last + 1]
        assert set(wanted[last:]) <= {-100}


def test_same_seed_same_weights() -> None:
    tokenizer = build_tokenizer()
    recipe = Recipe(tokens=3000, batch_tokens=1024, seed=3)
    first, second = (pretrain(tokenizer, recipe, lambda *_: None).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(3)
    untrained = build_model(tokenizer).state_dict()
    assert not torch.equal(first["lm_head.weight"], untrained["lm_head.weight"])


def test_seeds_train_on_different_problems() -> None:
    ranges = [range(TRAINING.start + seed * 100_000, TRAINING.start + (seed + 1) * 100_000) for seed in range(10)]
    assert ranges[-1].stop <= TRAINING.stop


def test_build_makes_a_complete_folder_in_two_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an untrained model solves nothing, so its traces stand in for themselves here
    def solved(model: object, tokenizer: object, problems: list, **_: object) -> list[Solution]:
        return [Solution(write_response(problem), True, True, 60, 400, 450) for problem in problems]

    monkeypatch.setattr(building, "solve", solved)
    monkeypatch.setattr(building, "PREDICTOR_PROBLEMS", 10)
    monkeypatch.setattr(building, "_VALIDATION_PROBLEMS", 2)
    out, recipe = tmp_path / "weights", Recipe(tokens=2000, batch_tokens=1024)
    with monkeypatch.context() as failing:
        failing.setattr(building, "label_traces", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            building.build(out, recipe)
    with pytest.raises(DyntsError, match=r"not \{'seed': 1"):
        building.build(out, Recipe(tokens=2000, batch_tokens=1024, seed=1))
    with monkeypatch.context() as once:
        once.setattr(building, "pretrain", None)  # the model is there already
        record = building.build(out, recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights"]
    assert json.loads((out / "training.json").read_text()) == record
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert record["pretraining"][-1]["tokens"] >= 2000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for label in ("answer", "future"):
        predictor = ImportancePredictor.from_pretrained(out / label)
        predictor.check_model(model)
        assert predictor.config.label == label
    text = make_problem(PREDICTOR[0]).question
    assert tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    with pytest.raises(DyntsError, match="exists"):
        building.build(out, Recipe(tokens=2000))
