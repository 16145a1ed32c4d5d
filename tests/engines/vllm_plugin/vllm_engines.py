"""Engines of vLLM for the tests: in this process, so that the scheduler can be looked at."""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import dynts

BLOCK = 32
RUNNERS = ("v1", "v2")
"""vLLM's model runners."""

HAS_VLLM = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: `make vllm` runs these in .venv-vllm")
if HAS_VLLM:  # it reads them when it is imported
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def budget(config: dynts.CompressionConfig, predictor: Path, **more: str) -> dict[str, Any]:
    """The additional config of an engine under a budget; more are further settings."""
    return {
        "dynts": {
            "predictor": str(predictor),
            "budget": config.budget,
            "local_window": config.local_window,
            "retention_ratio": config.retention_ratio,
            **more,
        }
    }


@contextmanager
def started(model: Path, additional: dict[str, Any], runner: str = "v1", **arguments: Any) -> Iterator[Any]:
    """A `vllm.LLM` on the CPU in float32, with prefix caching and chunked prefill, and a model runner ("v1", "v2")."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    usual = {
        "dtype": "float32",
        "max_model_len": 1024,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 128,
        "block_size": BLOCK,
        "disable_log_stats": False,
    }
    with mock.patch.dict(os.environ, {"VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2"))}):
        llm = LLM(model=str(model), additional_config=additional, **{**usual, **arguments})
        yield llm
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def scheduler(llm: Any) -> Any:
    """Of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def runner_of(llm: Any) -> str:
    """Which of vLLM's model runners an engine in this process has."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return (
        "v2"
        if any(part.__module__ == "vllm.v1.worker.gpu.model_runner" for part in type(worker.model_runner).__mro__)
        else "v1"
    )


def free_blocks(llm: Any) -> int:
    """Blocks that no request holds."""
    return int(scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks())


def prompts_of(tokens: Sequence[Sequence[int]]) -> list[dict[str, list[int]]]:
    """As vLLM takes them."""
    return [{"prompt_token_ids": list(ids)} for ids in tokens]


def sampling(tokens: int, **options: Any) -> Any:
    """Drawn at random, to a given length, with the log-probabilities of the likeliest five."""
    from vllm import SamplingParams

    chosen = {"temperature": 1.0, "logprobs": 5, "detokenize": False, "ignore_eos": True, **options}
    return SamplingParams(max_tokens=tokens, **chosen)


def outputs_of(results: Sequence[Any]) -> list[list[int]]:
    """Generated tokens, of the first sample of each request."""
    return [list(result.outputs[0].token_ids) for result in results]


def furthest(results: Sequence[Any], expected: Sequence[torch.Tensor]) -> float:
    """Largest difference between the log-probabilities that vLLM reports and the expected ones, [tokens,
    vocabulary]."""
    return max(
        abs(reported.logprob - row[step, token].item())
        for result, row in zip(results, expected, strict=True)
        for step, reports in enumerate(result.outputs[0].logprobs)
        for token, reported in reports.items()
    )
