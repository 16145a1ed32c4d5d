"""Who is let in: a pool for a few budgets does for sequences of any length, and shared prompts take room once."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_vllm_engine import CONFIG, POOL, PROMPTS, TOLERANCE, expect
from test_vllm_refusals import configure
from vllm_engines import (
    BLOCK,
    budget,
    free_blocks,
    furthest,
    needs_vllm,
    outputs_of,
    prompts_of,
    sampling,
    scheduler,
    started,
)

from decoding import random_tokens

pytestmark = needs_vllm

LENGTH = 8192
"""Of the longest sequence: 256 blocks."""
MOST = -(-CONFIG.budget // BLOCK)
"""Blocks that a request fills."""


@pytest.fixture(scope="module")
def folder(random_model: Callable[[str], Path]) -> Path:
    folder = random_model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LENGTH}))
    return folder


SMALL = {"skip_tokenizer_init": True, "max_model_len": LENGTH, "num_gpu_blocks_override": MOST + 1}
"""A pool for one budget, and vLLM's null block."""


@pytest.fixture(scope="module", params=["v1", "v2"])
def llm(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    with started(folder, budget(CONFIG, folder / "predictor"), request.param, **SMALL) as llm:
        yield llm


def test_a_pool_for_one_budget_decodes_sequences_of_many_times_its_size(llm: Any, folder: Path) -> None:
    prompts = [random_tokens(40, 1), random_tokens(200, 2)]
    results = llm.generate(prompts_of(prompts), sampling(2100), use_tqdm=False)
    assert [len(tokens) for tokens in outputs_of(results)] == [2100, 2100]
    assert scheduler(llm).counters.preemptions == 0
    assert scheduler(llm).counters.peak_requests == 1, "the other has to wait"
    expected, compactions = expect(folder, prompts, results)
    assert compactions > 20
    assert furthest(results, expected) < TOLERANCE
    assert free_blocks(llm) == MOST
    assert scheduler(llm).kv_cache_manager.reserved == {}


def test_what_vllm_says_about_the_pool(llm: Any) -> None:
    cache = llm.llm_engine.vllm_config.cache_config
    assert cache.kv_cache_max_concurrency == pytest.approx((MOST + 1) / MOST)


@pytest.mark.slow
def test_vllm_itself_refuses_that_pool(folder: Path) -> None:
    with pytest.raises(ValueError, match="To serve at least one request"), started(folder, {}, **SMALL):
        pass


@pytest.fixture(
    params=["BudgetScheduler v1", "BudgetAsyncScheduler v1", "BudgetScheduler v2", "BudgetAsyncScheduler v2"]
)
def alone(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler without an engine, for up to 16 requests in the pool of `POOL` blocks."""
    import torch
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from dynts.engines.vllm import scheduler as schedulers
    from dynts.engines.vllm.blocks import BudgetSpec

    kind, runner = request.param.split()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(runner == "v2")))
    config = configure(
        folder, budget(CONFIG, folder / "predictor"), max_num_seqs=16, max_num_batched_tokens=128, max_model_len=LENGTH
    )
    config.cache_config.num_gpu_blocks = POOL
    init_none_hash(sha256)
    spec = BudgetSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
    return getattr(schedulers, kind)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(POOL, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )


class Worker:
    """Draws the tokens of a scheduler's steps, which may be in flight while the next is scheduled."""

    def __init__(self, scheduler: Any, delay: int) -> None:
        self.scheduler = scheduler
        self.delay = delay
        self.flying: list[Any] = []

    def add(self, name: str, prompt: list[int], tokens: int) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler.add_request(Request(name, prompt, sampling(tokens, logprobs=None), None, block_hasher=hasher))

    def step(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        step = self.scheduler.schedule()
        if step.total_num_scheduled_tokens:
            sampled = [
                [7]
                if self.scheduler.requests[name].num_computed_tokens >= self.scheduler.requests[name].num_tokens
                else []
                for name in step.num_scheduled_tokens
            ]
            names = list(step.num_scheduled_tokens)
            output = ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, sampled)
            output.dynts_compacted = step.dynts_due
            self.flying.append((step, output))
        if self.flying and (len(self.flying) > self.delay or not step.total_num_scheduled_tokens):
            self.scheduler.update_from_output(*self.flying.pop(0))


def test_shared_prompts_take_room_once(alone: Any) -> None:
    """35 blocks: 6 that the 16 prompts of 7 or 8 blocks share, and 5 for each request that runs."""
    worker = Worker(alone, delay=type(alone).__name__ == "BudgetAsyncScheduler")
    worker.add("first", PROMPTS[0], 600)
    for _ in range(4):
        worker.step()
    for number, prompt in enumerate(PROMPTS[1:]):
        worker.add(str(number), prompt, 600)
    while alone.has_unfinished_requests():
        worker.step()
    assert alone.counters.peak_requests == 5
    assert alone.counters.preemptions == 0
    assert alone.kv_cache_manager.block_pool.get_num_free_blocks() == POOL - 1


@pytest.mark.parametrize("seed", range(2))
def test_what_is_admitted_finds_room_to_its_end(alone: Any, seed: int) -> None:
    """Any mixture of prompts, shared ones among them, lengths and arrivals: nothing is preempted, nothing is lost."""
    draw = random.Random(seed)
    worker, manager = Worker(alone, delay=type(alone).__name__ == "BudgetAsyncScheduler"), alone.kv_cache_manager
    common = random_tokens(240, seed)
    for number in range(40):
        prompt = common[: draw.randrange(240)] + random_tokens(draw.randrange(1, 60), number)
        worker.add(str(number), prompt, draw.randrange(1, 900))
        for _ in range(draw.randrange(60)):
            worker.step()
        if draw.random() < 0.1:
            alone.finish_requests([draw.choice([*alone.requests])] if alone.requests else [], _aborted())
        assert manager.unreserved >= 0
        held = manager.coordinator.single_type_managers[0].req_to_blocks
        assert all(len(blocks) <= MOST for blocks in held.values())
    while alone.has_unfinished_requests():
        worker.step()
    assert alone.counters.compactions > 20
    assert alone.counters.peak_requests > 3
    assert alone.counters.preemptions == 0
    assert manager.block_pool.get_num_free_blocks() == POOL - 1
    assert manager.evicted == manager.reserved == {}


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED
