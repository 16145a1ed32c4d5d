"""Costs from a configuration, against numbers worked out by hand and bytes measured in a real cache."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import dynts
from command_line import run
from decoding import random_predictor, random_tokens
from dynts import CompressionConfig, DyntsError
from dynts.models.costs import PredictorCost
from dynts.models.shape import ModelShape
from dynts.planning.cost import Hardware, Planner, Workload, parse_quantity
from dynts.planning.recommend import recommend
from dynts.predictor.config import PredictorConfig
from dynts.report.plan import speedup
from tiny import tiny_model

QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
H100 = Hardware(80e9, 3.35e12, 990e12)


def planner(config: dict[str, Any], hardware: Hardware = H100) -> Planner:
    return Planner(ModelShape.of(AutoConfig.for_model(**config)), 2, hardware)


def test_qwen_7b_by_hand() -> None:
    plan = planner(QWEN_7B)
    # keys and values, 28 layers, 4 heads of 128, 2 bytes
    assert plan.shape.kv_bytes_per_token(2) == 2 * 28 * 4 * 128 * 2 == 57_344
    # per layer: q, k, v with biases, o; three MLP matrices; two norms
    layer = 3584 * 3584 + 3584 + 2 * (3584 * 512 + 512) + 3584 * 3584 + 3 * 3584 * 18944 + 2 * 3584
    assert plan.weight_bytes == 2 * (28 * layer + 2 * 152064 * 3584 + 3584)
    # d -> 2d -> d/2 -> 1: 3 d^2 + d/2 weights, two FLOPs each
    assert plan.predictor.parameters == 3584 * 7168 + 7168 * 1792 + 1792 == 38_536_960
    assert plan.predictor.flops == 6 * 3584**2 + 3584
    cost = plan.cost(Workload(200, 16_384), CompressionConfig(5000, 2000, 0.4))
    # kept: 200 + 0.4 * (5000 - 2000 - 200) + 2000 = 3320
    assert (cost.peak_tokens, cost.evicted) == (5000, 1680)
    # 16,383 tokens are fed: 4800 up to the first compaction, 1680 between two
    assert cost.compactions == 1 + (16_383 - 4800) // 1680
    assert cost.sequence_bytes == 5000 * 57_344 + 1680 * 3584 * 2
    room = 0.9 * 80e9 - plan.weight_bytes - 38_536_960 * 4
    assert cost.sequences == int(room / cost.sequence_bytes)
    full = plan.cost(Workload(200, 16_384), None)
    assert (full.peak_tokens, full.compactions) == (16_583, 0)
    assert full.sequence_bytes == 16_583 * 57_344
    assert full.mean_tokens == (201 + 16_583) / 2
    # K > 1.5 d / (n L): 192 for one step, and so 193
    assert plan.break_even(1) == 193
    assert plan.break_even(20) == 10
    assert plan.break_even(cost.evicted) == cost.break_even == 1


def test_llama_8b_by_hand() -> None:
    plan = planner(LLAMA_8B)
    assert plan.shape.kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2 == 131_072
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert plan.weight_bytes == 2 * (32 * layer + 2 * 128256 * 4096 + 4096)
    assert plan.predictor == PredictorCost(50_333_696, 201_334_784, 6 * 4096**2 + 4096)
    found = recommend(plan, Workload(200, 16_384), "llama").schedule
    assert found == CompressionConfig(5000, 2000, 0.3)  # the published setting


def test_predictor_cost_is_that_of_a_predictor() -> None:
    for size in (32, 33):
        predictor = dynts.ImportancePredictor(PredictorConfig(hidden_size=size))
        weights = list(predictor.parameters())
        cost = PredictorCost.of(size)
        assert cost.parameters == sum(weight.numel() for weight in weights)
        assert cost.bytes == sum(weight.numel() * weight.element_size() for weight in weights)


@pytest.mark.quick
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_bytes_are_those_of_a_real_cache(architecture: str) -> None:
    model = tiny_model(architecture)
    schedule = CompressionConfig(60, 20, 0.4)
    prompt, generated = 11, 150
    with dynts.compress(model, "dynts", schedule, random_predictor()) as session:
        model.generate(torch.tensor([random_tokens(prompt, 1)]), max_new_tokens=generated, do_sample=False)
    stats = session.stats[0]
    cost = Planner(ModelShape.of(model.config), 4, H100).cost(Workload(prompt, generated), schedule)
    assert cost.peak_tokens == stats.peak_tokens
    assert cost.compactions == len(stats.compactions)
    # hidden states that wait for the predictor are no part of the cache
    cached = cost.sequence_bytes - cost.evicted * 32 * 4
    # transformers' sliding-window layers hold one token less than the window
    sliding = sum(kind == "sliding_attention" for kind in getattr(model.config, "layer_types", None) or [])
    assert stats.peak_bytes <= cached <= stats.peak_bytes + sliding * 2 * 2 * 8 * 4


def test_steps_bound_by_memory_and_by_flops() -> None:
    shape = planner(QWEN_7B).shape
    work = Workload(10, 4, sequences=3)
    weights = 2 * shape.matrix_parameters
    slow_memory = Planner(shape, 2, Hardware(80e9, 1e9, 1e30)).cost(work, None)
    # three steps attend to 11, 12 and 13 tokens
    assert slow_memory.step_seconds == pytest.approx((weights + 3 * 12 * 57_344) / 1e9)
    slow_flops = Planner(shape, 2, Hardware(80e9, 1e30, 1e9)).cost(work, None)
    assert slow_flops.step_seconds == pytest.approx(3 * shape.flops_per_token(12) / 1e9)


def test_speedup_grows_with_the_sequences() -> None:
    plan = planner(QWEN_7B)
    schedule = CompressionConfig(5000, 2000, 0.4)
    gains = []
    for sequences in (1, 8, 64):
        work = Workload(200, 16_384, sequences)
        gains.append(speedup(plan.cost(work, schedule), plan.cost(work, None)))
    assert 1 < gains[0] < gains[1] < gains[2] < 16_583 / 3320


def test_recommendation_is_scaled_and_fits() -> None:
    plan = planner(QWEN_7B)
    assert recommend(plan, Workload(200, 16_384), "qwen2").schedule == CompressionConfig(5000, 2000, 0.4)
    assert recommend(plan, Workload(200, 32_768), "qwen2").schedule == CompressionConfig(10_000, 4000, 0.4)
    long_question = recommend(plan, Workload(3000, 16_384), "qwen2").schedule
    assert long_question == CompressionConfig(8000, 2000, 0.4)
    # 24 GB: 6.2 GB for caches, so 5000 tokens (0.3 GB) fit 20 times, and 25 sequences take a smaller budget
    small = planner(QWEN_7B, Hardware(24e9, 1e12, 1e14))
    lowered = recommend(small, Workload(200, 16_384, 25), "qwen2")
    assert lowered.schedule is not None
    assert 3000 <= lowered.schedule.budget < 5000
    assert small.cost(Workload(200, 16_384, 25), lowered.schedule).sequences >= 25
    assert recommend(small, Workload(200, 16_384, 60), "qwen2").schedule is None
    assert recommend(plan, Workload(3, 4), "qwen2").schedule is None  # shorter than any budget
    for length in (10, 50, 777):
        found = recommend(plan, Workload(200, length), "llama").schedule
        assert found is not None
        found.check_question(200)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("80GB", "B", 80e9),
        ("24 gib", "B", 24 * 2**30),
        ("3.35TB/s", "B/s", 3.35e12),
        ("990TFLOPS", "FLOPS", 990e12),
        (".5PFLOPS", "FLOPS", 5e14),
        ("100B", "B", 100),
    ],
)
def test_quantities(text: str, unit: str, value: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(value)


@pytest.mark.parametrize("text", ["80", "GB", "-80GB", "80GB/s", "0GB", "80XB", "iB", "80 iB", "", "8e1GB"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(DyntsError, match="in B"):
        parse_quantity(text, "B")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    return tmp_path


def test_command(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "plan", "--model", model, "--budget", 3000, "--budget", 5000, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["kv_bytes_per_token"] == 57_344
    assert [row["schedule"] and row["schedule"]["budget"] for row in found["costs"]] == [None, 3000, 5000]
    assert found["recommended"]["schedule"] == {"budget": 5000, "local_window": 2000, "retention_ratio": 0.4}
    code, out, _ = run(monkeypatch, capsys, "plan", "--model", model, "--markdown")
    assert code == 0
    assert "| full cache |" in out
    code, out, _ = run(monkeypatch, capsys, "plan", "--model", model, "--dtype", "float32", "--json")
    assert json.loads(out)["kv_bytes_per_token"] == 2 * 57_344


def test_quantised_weights_are_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = {**QWEN_7B, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (model / "config.json").write_text(json.dumps(packed))
    code, out, err = run(monkeypatch, capsys, "plan", "--model", model, "--json")
    assert code == 0
    assert json.loads(out)["kv_bytes_per_token"] == 57_344
    assert "weights are quantised (gptq): bfloat16 is counted" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-memory", "80"], ["'80'", "80GB"]),
        (["--bandwidth", "fast"], ["'fast'", "B/s"]),
        (["--dtype", "int8"], ["int8", "float"]),
        (["--budget", "100"], ["budget 100", "question of 200"]),
        (["--budget", "3000", "--local-window", "3000"], ["local_window (3000)", "budget (3000)"]),
        (["--reserve", "1.5"], ["reserve", "1.5"]),
    ],
)
def test_refusals(
    arguments: list[str],
    words: list[str],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(monkeypatch, capsys, "plan", "--model", model, *arguments)
    assert code == 2
    for word in words:
        assert word in err


def test_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(monkeypatch, capsys, "plan", "--model", tmp_path / "nothing")
    assert code == 2
    assert "could not read the configuration" in err
