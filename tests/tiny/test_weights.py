"""The shipped files: complete, small, what the training command wrote, and loaded right by transformers."""

import hashlib
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynts.predictor.model import ImportancePredictor
from dynts.tiny import LABELS, WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import MEAN_LENGTH, QUESTION_TOKENS
from dynts.tiny.task import make_problem
from recipes.embedded_model.solution import write_response
from recipes.embedded_model.tokenizer import build_tokenizer

LOG = json.loads((WEIGHTS / "training.json").read_text())


def test_files_are_those_of_the_training_log() -> None:
    found = {path.relative_to(WEIGHTS).as_posix(): path for path in WEIGHTS.rglob("*") if path.is_file()}
    del found["training.json"]
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == LOG["sha256"]


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 6_000_000


def test_the_log_meets_the_bounds_that_the_docs_state() -> None:
    held_out = LOG["held_out"]
    assert held_out["problems"] == 500
    assert held_out["pass@1"] >= 0.97
    assert held_out["pass@1 without thinking"] <= 0.1
    assert 400 <= held_out["mean thinking tokens"] <= 1000
    assert held_out["mean length"] == pytest.approx(MEAN_LENGTH, rel=0.02)
    assert held_out["mean question tokens"] == pytest.approx(QUESTION_TOKENS, abs=1)


@pytest.mark.quick
def test_auto_classes_load_the_right_tokenizer_and_model() -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(WEIGHTS), AutoModelForCausalLM.from_pretrained(WEIGHTS)
    problem = make_problem(1)
    text = f"{problem.question} {write_response(problem)}"
    assert tokenizer.encode(text) == build_tokenizer().encode(text)
    assert tokenizer.unk_token_id not in tokenizer.encode(text)
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.head_dim >= 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("label", LABELS)
def test_predictors_belong_to_the_model(label: str) -> None:
    model, _ = load_tiny_model()
    predictor = load_tiny_predictor(label)
    assert isinstance(predictor, ImportancePredictor)
    predictor.check_model(model)
    assert predictor.config.label == label
    metrics = LOG[f"{label}, {predictor.config.transform}"]["metrics"]
    own = metrics.pop("predictor")["kendall_tau"]
    assert own > max(trivial["kendall_tau"] for trivial in metrics.values())
