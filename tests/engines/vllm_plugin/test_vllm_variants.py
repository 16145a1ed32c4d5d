"""Other ways to run vLLM: another architecture compiled, asynchronous scheduling, no budget, no prefix caching."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_vllm_engine import CONFIG, POOL, PROMPTS, TOLERANCE, expect
from vllm_engines import (
    RUNNERS,
    budget,
    furthest,
    needs_vllm,
    outputs_of,
    prompts_of,
    sampling,
    scheduler,
    started,
)

from dynts.cache.method import Granularity
from dynts.engines.vllm.plugin import WORKERS
from dynts.methods import DynTS

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("name", "runner", "arguments"),
    [
        pytest.param("qwen2", "v1", {"enforce_eager": False}, id="compiled, v1"),
        pytest.param("qwen3", "v2", {"enforce_eager": False}, id="compiled, v2"),
        pytest.param("qwen2", "v2", {"enable_prefix_caching": False, "max_num_seqs": 16}, id="no prefix caching"),
        pytest.param(
            "qwen3",
            "v1",
            {"max_num_batched_tokens": 2048, "block_size": 64, "num_gpu_blocks_override": None},
            id="block 64",
        ),
    ],
)
def test_architectures(random_model: Callable[[str], Path], name: str, runner: str, arguments: dict[str, Any]) -> None:
    folder = random_model(name)
    chosen = {"skip_tokenizer_init": True, "num_gpu_blocks_override": POOL, **arguments}
    with started(folder, budget(CONFIG, folder / "predictor"), runner=runner, **chosen) as llm:
        results = llm.generate(prompts_of(PROMPTS), sampling(260), use_tqdm=False)
        assert scheduler(llm).counters.compactions >= 16
    assert furthest(results, expect(folder, PROMPTS, results)[0]) < TOLERANCE


@pytest.mark.parametrize("runner", RUNNERS)
def test_asynchronous_scheduling(
    random_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """vLLM turns it off on CPUs, where it gains nothing; here it is turned on again, for it is the default on GPUs."""
    from vllm.platforms.cpu import CpuPlatform

    usual = CpuPlatform.check_and_update_config.__func__

    def asynchronous(platform: type, config: Any) -> None:
        usual(platform, config)
        config.scheduler_config.async_scheduling = True

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(asynchronous))
    folder = random_model("llama")
    additional = budget(CONFIG, folder / "predictor")
    arguments = {"skip_tokenizer_init": True, "num_gpu_blocks_override": POOL}
    with started(folder, additional, runner=runner, **arguments) as llm:
        assert type(scheduler(llm)).__name__ == "BudgetAsyncScheduler"
        results = llm.generate(prompts_of(PROMPTS), sampling(260), use_tqdm=False)
        assert 1 < scheduler(llm).counters.peak_requests < len(PROMPTS)
        assert scheduler(llm).counters.preemptions == 0
    assert furthest(results, expect(folder, PROMPTS, results)[0]) < TOLERANCE


@pytest.mark.parametrize("granularity", ["shared", "native"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_tensor_parallelism(
    random_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, runner: str, granularity: Granularity
) -> None:
    """Two processes with a KV head each: of one set of tokens the first tells the other, sets of heads stay apart."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else vLLM wants a NUMA node for each process
    folder = random_model("llama")
    additional = budget(CONFIG, folder / "native", granularity=granularity)
    arguments = {"skip_tokenizer_init": True, "num_gpu_blocks_override": POOL, "tensor_parallel_size": 2}
    prompts = PROMPTS[:4]
    with started(folder, additional, runner=runner, **arguments) as llm:
        results = llm.generate(prompts_of(prompts), sampling(260), use_tqdm=False)
        assert scheduler(llm).counters.compactions >= 8
    expected, _ = expect(folder, prompts, results, "native", DynTS(granularity))
    assert furthest(results, expected) < TOLERANCE


def test_without_settings_vllm_is_itself(random_model: Callable[[str], Path]) -> None:
    assert not any(name.startswith("DYNTS_") for name in os.environ)
    folder = random_model("llama")
    with started(folder, {}, skip_tokenizer_init=True) as llm:
        assert type(scheduler(llm)).__module__.startswith("vllm.")
        assert type(scheduler(llm).kv_cache_manager).__module__.startswith("vllm.")
        assert llm.llm_engine.vllm_config.parallel_config.worker_cls in WORKERS
        (result,) = llm.generate(prompts_of([PROMPTS[0]]), sampling(200), use_tqdm=False)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (tokens,) = outputs_of([result])
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0] + tokens])).logits[0]
    assert furthest([result], [logits[len(PROMPTS[0]) - 1 :].log_softmax(-1)]) < TOLERANCE
