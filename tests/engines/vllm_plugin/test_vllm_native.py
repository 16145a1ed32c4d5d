"""vLLM with a set of tokens for each layer and KV head, and where the question competes, beside transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_vllm_engine import CONFIG, POOL, PROMPTS, TOLERANCE, expect
from vllm_engines import (
    budget,
    free_blocks,
    furthest,
    needs_vllm,
    prompts_of,
    sampling,
    scheduler,
    started,
)

from dynts.engines.ledger import Ledger
from dynts.methods import DynTS, DynTSAll

pytestmark = needs_vllm


def distance(folder: Path, results: list[Any], method: DynTS) -> float:
    """From the log-probabilities of the transformers path."""
    return furthest(results, expect(folder, PROMPTS, results, "native", method)[0])


@pytest.mark.parametrize(
    ("runner", "method", "other"),
    [
        pytest.param("v1", DynTS("native"), DynTS("shared"), id="v1, native"),
        pytest.param("v2", DynTS("native"), DynTS("shared"), id="v2, native"),
        pytest.param("v2", DynTSAll("native"), DynTS("native"), id="v2, question competes, native"),
        pytest.param("v1", DynTSAll("shared"), DynTS("shared"), id="v1, question competes"),
    ],
)
def test_logprobs_equal_the_transformers_path(
    random_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, runner: str, method: DynTS, other: DynTS
) -> None:
    """Queueing, a shared prompt in cached blocks, a preemption, and compactions that are due together one by one."""
    folder, cached = random_model("llama"), method.protect_question
    monkeypatch.setattr(Ledger, "at_once", 1)
    additional = budget(CONFIG, folder / "native", granularity=method.granularity, method=method.name)
    arguments = {"skip_tokenizer_init": True, "num_gpu_blocks_override": POOL, "enable_prefix_caching": cached}
    with started(folder, additional, runner=runner, **arguments) as llm:
        engine, watched = llm.llm_engine, scheduler(llm)
        for number, prompt in enumerate(PROMPTS):
            engine.add_request(str(number), *prompts_of([prompt]), sampling(150 + 31 * (number % 7)))
        done: dict[int, Any] = {}
        preempted = steps = 0
        while engine.has_unfinished_requests():
            done |= {int(result.request_id): result for result in engine.step() if result.finished}
            steps += 1
            if steps == 200:
                preempted = sum(count > 0 for count in watched.kv_cache_manager.evicted.values())
                watched.reset_prefix_cache(reset_running_requests=True)
        results = [done[number] for number in range(len(PROMPTS))]
        assert preempted, "one that had evicted must be preempted"
        assert (sum(result.num_cached_tokens > 0 for result in results) >= 8) == cached, "the system prompt is shared"
        assert watched.counters.compactions >= 30
        assert free_blocks(llm) == POOL - 1
    assert distance(folder, results, method) < TOLERANCE
    assert distance(folder, results, other) > 100 * TOLERANCE, "other sets must show"
