"""FLOPs of whole generations against torch's counter, and cache lengths against a cache that evicts."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dynts
from decoding import cached_tokens, random_predictor, random_tokens
from dynts.evaluate.metrics import summarize
from dynts.evaluate.results import ArmResults
from dynts.methods import METHODS
from dynts.models.costs import PredictorCost, flops_by_length
from dynts.models.shape import ModelShape
from evaluate_samples import sample
from tiny import tiny_model

PROMPT, NEW = 7, 60
CONFIG = dynts.CompressionConfig(budget=30, local_window=8, retention_ratio=0.4)


def test_predictor() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        random_predictor(hidden_size=32)(torch.ones(1, 32))
    assert PredictorCost.of(32).flops == counter.get_total_flops()


@pytest.mark.parametrize("method", ["full", "dynts", "streaming-llm"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_generation_costs_what_torch_counts(kind: str, method: str) -> None:
    model = tiny_model(kind, attn_implementation="eager")
    ids = torch.tensor([random_tokens(PROMPT, seed=1)])

    def counted(new_tokens: int) -> int:
        with FlopCounterMode(display=False) as counter:
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        return counter.get_total_flops()

    with dynts.compress(model, method, CONFIG, random_predictor()) as session:
        torch_counted = counted(NEW) - counted(1)  # less the prefill
        stats = session.stats[0]
    made = sample(
        prompt_tokens=PROMPT,
        generated_tokens=NEW,
        cache_lengths=tuple(map(tuple, stats.compactions)),
        peak_tokens=stats.peak_tokens,
    )
    schedule = None if method == "full" else CONFIG
    assert bool(stats.compactions) == (schedule is not None)
    assert made.attended().tolist() == cached_tokens(PROMPT, NEW, schedule)[0]
    shape = ModelShape.of(model.config)
    arm = ArmResults("b", method, METHODS[method], 0, schedule, [made], {"settings": {}}, Path("x"))
    metrics = summarize(arm, lambda first, second: first == second, shape)
    assert arm.uses_predictor == (method == "dynts")
    assert metrics.flops == torch_counted
    assert metrics.flops_per_step == pytest.approx(metrics.flops / (NEW - 1))


def test_by_length_adds_the_predictor() -> None:
    shape = ModelShape.of(tiny_model("llama").config)
    plain, scored = flops_by_length(shape, 20, predictor=False), flops_by_length(shape, 20, predictor=True)
    assert plain.tolist() == [shape.flops_per_token(length) for length in range(21)]
    assert set(scored - plain) == {PredictorCost.of(32).flops}


@pytest.mark.parametrize("prompt", [7, 20, 29])
@pytest.mark.parametrize("generated", [1, 2, 25, 200])
def test_attended_tokens_follow_the_corners(prompt: int, generated: int) -> None:
    config = dynts.CompressionConfig(budget=40, local_window=5, retention_ratio=0.5)
    lengths, _ = cached_tokens(prompt, generated, config)
    corners = [(step, 40, config.kept_tokens(prompt)) for step, length in enumerate(lengths, start=1) if length == 40]
    made = sample(prompt_tokens=prompt, generated_tokens=generated, cache_lengths=tuple(corners))
    assert made.attended().tolist() == lengths


def test_room_made_before_the_first_step() -> None:
    made = sample(prompt_tokens=40, generated_tokens=4, cache_lengths=((0, 40, 25),))
    assert made.attended().tolist() == [26, 27, 28]
