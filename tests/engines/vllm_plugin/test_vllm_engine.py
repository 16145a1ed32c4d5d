"""vLLM under a budget, beside the transformers path: two engines for everything, on each of its model runners."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import (
    BLOCK,
    RUNNERS,
    budget,
    free_blocks,
    furthest,
    needs_vllm,
    outputs_of,
    prompts_of,
    runner_of,
    sampling,
    scheduler,
    started,
)

import dynts
from decoding import random_tokens
from dynts.chat.markers import ThinkMarkers
from dynts.chat.prompts import chat_prompt
from dynts.methods import DynTS
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from transformers_path import MARKERS, forced_logprobs

pytestmark = needs_vllm

TOLERANCE = 1e-4
SYSTEM = random_tokens(200, 0)
PROMPTS = [SYSTEM + random_tokens(5 + 3 * number, number + 1) for number in range(16)]
CONFIG = dynts.CompressionConfig(budget=350, local_window=40, retention_ratio=0.4)
POOL = 36
"""Blocks: little more than one sequence of the longest length, and about three budgets."""


@pytest.fixture(scope="module")
def folder(random_model: Callable[[str], Path]) -> Path:
    return random_model("llama")


@pytest.fixture(scope="module", params=RUNNERS)
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A random Llama, on each model runner: eight requests at a time, in a pool that holds about three."""
    additional = budget(CONFIG, folder / "predictor")
    arguments = {"skip_tokenizer_init": True, "num_gpu_blocks_override": POOL}
    with started(folder, additional, runner=request.param, **arguments) as llm:
        assert runner_of(llm) == request.param
        yield llm


def expect(
    folder: Path,
    prompts: list[list[int]],
    results: list[Any],
    predictor: str = "predictor",
    method: DynTS | None = None,
) -> tuple[list[Any], int]:
    """What the transformers path says of the tokens that vLLM generated, by one of a random model's predictors."""
    loaded = dynts.ImportancePredictor.from_pretrained(folder / predictor)
    markers = ThinkMarkers((MARKERS[0],), (MARKERS[1],))
    return forced_logprobs(folder, prompts, outputs_of(results), CONFIG, loaded, markers, method or DynTS())


def test_logprobs_equal_the_transformers_path_with_queueing_and_shared_prompts(llm: Any, folder: Path) -> None:
    counters = scheduler(llm).counters
    lengths = [150 + 31 * (number % 7) for number in range(16)]
    results = llm.generate(prompts_of(PROMPTS), [sampling(length) for length in lengths], use_tqdm=False)
    assert [len(tokens) for tokens in outputs_of(results)] == lengths
    assert sum(result.num_cached_tokens > 0 for result in results) >= 8, "the system prompt must be shared"
    assert 1 < counters.peak_requests < len(PROMPTS), "some must wait"
    assert counters.preemptions == 0, "what was admitted must find room to its end"
    assert counters.compactions >= 30
    assert furthest(results, expect(folder, PROMPTS, results)[0]) < TOLERANCE
    assert free_blocks(llm) == POOL - 1, "all but vLLM's null block must be free again"
    assert scheduler(llm).kv_cache_manager.evicted == scheduler(llm).kv_cache_manager.reserved == {}


def test_evicted_requests_that_are_preempted_are_replayed_exactly(llm: Any, folder: Path) -> None:
    engine, watched = llm.llm_engine, scheduler(llm)
    prompts = PROMPTS[:3]
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), *prompts_of([prompt]), sampling(300))
    done: dict[int, Any] = {}
    before, evicted, steps = watched.counters.compactions, 0, 0
    while engine.has_unfinished_requests():
        done |= {int(result.request_id): result for result in engine.step() if result.finished}
        steps += 1
        if steps in (200, 260):
            evicted += sum(count > 0 for count in watched.kv_cache_manager.evicted.values())
            watched.reset_prefix_cache(reset_running_requests=True)
    results = [done[number] for number in range(3)]
    assert evicted >= 3, "requests that had evicted must be preempted, or the test tests nothing"
    expected, compactions = expect(folder, prompts, results)
    assert watched.counters.compactions - before > compactions
    assert furthest(results, expected) < TOLERANCE


def test_shared_prompts_are_never_written(llm: Any, folder: Path) -> None:
    """Whatever ran before, a prompt's cached blocks give what a fresh computation gives, alone and in a crowd."""
    greedy = sampling(250, temperature=0.0)
    crowd = outputs_of(llm.generate(prompts_of([PROMPTS[3]] * 8 + PROMPTS[:4]), greedy, use_tqdm=False))
    assert crowd[:8] == [crowd[11]] * 8
    alone = outputs_of(llm.generate(prompts_of([PROMPTS[3]]), greedy, use_tqdm=False))
    assert llm.reset_prefix_cache()
    fresh = llm.generate(prompts_of([PROMPTS[3]]), greedy, use_tqdm=False)
    assert fresh[0].num_cached_tokens == 0
    assert alone[0] == crowd[0] == outputs_of(fresh)[0]


def test_only_prompt_blocks_are_cached(llm: Any) -> None:
    assert llm.reset_prefix_cache()
    (first,) = llm.generate(prompts_of([PROMPTS[0]]), sampling(90, temperature=0.0), use_tqdm=False)
    longer = PROMPTS[0] + outputs_of([first])[0]
    (second,) = llm.generate(prompts_of([longer[:300]]), sampling(1), use_tqdm=False)
    assert second.num_cached_tokens == len(PROMPTS[0]) // BLOCK * BLOCK


def test_several_samples_seeds_stops_and_aborts(llm: Any) -> None:
    (several,) = llm.generate(prompts_of([PROMPTS[1]]), sampling(200, n=3, seed=7), use_tqdm=False)
    (again,) = llm.generate(prompts_of([PROMPTS[1]]), sampling(200, n=3, seed=7), use_tqdm=False)
    drawn = [tuple(sample.token_ids) for sample in several.outputs]
    assert len(set(drawn)) == 3
    assert drawn == [tuple(sample.token_ids) for sample in again.outputs]
    stop = drawn[0][170]
    (stopped,) = llm.generate(
        prompts_of([PROMPTS[1]]), sampling(200, n=3, seed=7, stop_token_ids=[stop]), use_tqdm=False
    )
    assert tuple(stopped.outputs[0].token_ids) == drawn[0][: drawn[0].index(stop) + 1]
    engine = llm.llm_engine
    engine.add_request("left", *prompts_of([PROMPTS[2]]), sampling(300))
    engine.add_request("ended", *prompts_of([PROMPTS[4]]), sampling(300))
    for _ in range(160):
        engine.step()
    engine.abort_request(["ended"])
    while engine.has_unfinished_requests():
        finished = [result for result in engine.step() if result.finished]
    assert [result.request_id for result in finished] == ["left"]
    assert free_blocks(llm) == POOL - 1


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(
        VLLMValidationError, match=r"budget 350 is too small for a question of 320 tokens.*at least 363"
    ):
        llm.generate(prompts_of([random_tokens(320, 9)]), sampling(5), use_tqdm=False)
    assert len(outputs_of(llm.generate(prompts_of([PROMPTS[0]]), sampling(5), use_tqdm=False))[0]) == 5


def test_evictions_that_the_worker_does_not_make_are_an_error(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = scheduler(llm)
    update = type(watched).update_from_output
    told: list[list[str]] = []

    def forgetful(self: Any, scheduled: Any, output: Any) -> Any:
        if scheduled.dynts_due:
            told.append(scheduled.dynts_due)
            said = output.dynts_compacted
            output.dynts_compacted = []
            with pytest.raises(RuntimeError, match="the worker has not compacted the KV cache of"):
                update(self, scheduled, output)
            output.dynts_compacted = said
        return update(self, scheduled, output)

    monkeypatch.setattr(type(watched), "update_from_output", forgetful)
    llm.generate(prompts_of([PROMPTS[0]]), sampling(170), use_tqdm=False)
    assert told


def test_steps_that_vllm_makes_to_warm_up_change_nothing(llm: Any) -> None:
    """Before it serves, vLLM's V2 runner is fed requests that no scheduler knows, made of the first token ids."""
    from vllm.v1.worker.gpu.warmup import run_mixed_prefill_decode_warmup

    if runner_of(llm) == "v1":
        pytest.skip("vLLM warms its V1 runner up below the steps that the plugin sees")
    assert llm.reset_prefix_cache(), "the steps write to the first blocks"
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    before = dict(worker.model_runner.evictor.ledger.entries)
    assert run_mixed_prefill_decode_warmup(worker.model_runner, worker.execute_model, worker.sample_tokens, 60)
    assert worker.model_runner.evictor.ledger.entries == before


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_embedded_model_answers_as_with_transformers(runner: str) -> None:
    model, tokenizer = load_tiny_model()
    config = schedule(budget_for(0.4))
    problems = [make_problem(number) for number in HELD_OUT[:16]]
    prompts = [
        tokenizer(chat_prompt(tokenizer, problem.question), add_special_tokens=False)["input_ids"]
        for problem in problems
    ]
    predictor = load_tiny_predictor()
    with dynts.compress(model, "dynts", config, predictor, tokenizer=tokenizer):
        expected = [solution.text for solution in solve(model, tokenizer, problems, max_new_tokens=600)]
    with started(WEIGHTS, budget(config, WEIGHTS / "answer"), runner=runner) as llm:
        results = llm.generate(prompts_of(prompts), sampling(600, temperature=0.0, ignore_eos=False), use_tqdm=False)
        assert scheduler(llm).counters.compactions > 16
    answers = [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in outputs_of(results)]
    assert answers == expected
    markers = dynts.chat.markers.think_markers(tokenizer)
    logprobs, _ = forced_logprobs(WEIGHTS, prompts, outputs_of(results), config, predictor, markers)
    assert furthest(results, logprobs) < TOLERANCE
