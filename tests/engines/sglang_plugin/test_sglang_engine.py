"""SGLang under a budget, beside the transformers path: one scheduler for everything that it does by default."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from budget_cases import (
    LENGTHS,
    POOL,
    PROMPTS,
    SYSTEM,
    TOLERANCE,
    compactions,
    counted,
    dispatch,
    expect,
    free_slots,
    furthest,
)
from sglang_engines import Scheduler, needs_sglang, sampling
from transformers import AutoModelForCausalLM

from decoding import random_tokens

pytestmark = needs_sglang


def heed_seeds(scheduler: Any) -> None:
    """In the scheduler's process: what --enable-deterministic-inference does to the sampler.

    As a whole that wants kernels of GPUs.
    """
    from sglang.srt.runtime_context import get_context

    @torch.library.custom_op("sgl_kernel::murmur_hash32_cpu", mutates_args=())
    def noise(seeds: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Another function of a seed and a position."""
        pairs = zip(seeds.tolist(), positions.tolist(), strict=True)
        sources = [torch.Generator().manual_seed(seed << 16 | position) for seed, position in pairs]
        rows = [torch.randint(2**32, columns.shape, generator=source) for source in sources]
        return torch.stack(rows).to(torch.uint32)

    torch.compiler.set_stance("force_eager")
    get_context().override("tests", enable_deterministic_inference=True)


def drawn(scheduler: Any, logprobs: Sequence[torch.Tensor], seeds: Sequence[int], starts: Sequence[int]) -> Any:
    """Likewise: what SGLang draws from log-probabilities of sequences that begin at these positions."""
    from sglang.srt.layers.sampler import multinomial_with_seed

    return [
        multinomial_with_seed(rows.double(), torch.full((len(rows),), seed), torch.arange(start, start + len(rows)))
        .flatten()
        .tolist()
        for rows, seed, start in zip(logprobs, seeds, starts, strict=True)
    ]


def test_logprobs_equal_the_transformers_path_with_queueing_and_shared_prompts(
    scheduler: Scheduler, llama: Path
) -> None:
    before = scheduler.call(counted)
    results = scheduler.generate(PROMPTS, [sampling(length) for length in LENGTHS])
    after = scheduler.call(counted)
    assert [len(result.tokens) for result in results] == LENGTHS
    assert sum(result.cached >= len(SYSTEM) for result in results) >= 8, "the system prompt must be shared"
    assert 1 < after["peak_requests"] < len(PROMPTS), "some must wait"
    assert not any(result.retractions for result in results), "what was admitted must find room to its end"
    assert after["compactions"] - before["compactions"] == compactions(PROMPTS, results) >= 30
    assert furthest(results, expect(llama, PROMPTS, results)) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


def test_sequences_longer_than_the_pool(scheduler: Scheduler, llama: Path) -> None:
    results = scheduler.generate(PROMPTS[:2], sampling(POOL + 50))
    assert [len(result.tokens) for result in results] == [POOL + 50] * 2
    assert not any(result.retractions for result in results)
    assert furthest(results, expect(llama, PROMPTS[:2], results)) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


def test_second_turns_find_prompts_and_what_was_not_evicted(scheduler: Scheduler, llama: Path) -> None:
    """The next turn of a conversation finds all of the last one in the radix cache, or only its prompt."""
    scheduler.call(dispatch, "FlushCacheReqInput")
    first = [
        *scheduler.generate(PROMPTS[:2], sampling(30)),
        *scheduler.generate(PROMPTS[2:4], sampling(200)),
    ]
    turns = [
        [*prompt, *result.tokens[:30], *random_tokens(9, 99 + number)]
        for number, (prompt, result) in enumerate(zip(PROMPTS, first, strict=False))
    ]
    results = scheduler.generate(turns, sampling(200))
    held = [len(prompt) for prompt in PROMPTS[:4]]
    assert [result.cached for result in results[:2]] == [length + 29 for length in held[:2]], "all that was fed"
    assert [result.cached for result in results[2:]] == held[2:], "nothing that was generated before an eviction"
    assert furthest(results, expect(llama, turns, results)) < TOLERANCE


def test_retracted_requests_are_replayed_exactly(scheduler: Scheduler, llama: Path) -> None:
    prompts, before = PROMPTS[:3], scheduler.call(counted)
    numbers = scheduler.add(prompts, sampling(250), stream=True)
    for steps in (150, 170, 30):  # after evictions; again; while the tokens are fed again
        scheduler.run(steps)
        scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
        scheduler.run(2)
        scheduler.call(dispatch, "ContinueGenerationReqInput")
    scheduler.run()
    results, after = scheduler.results[numbers], scheduler.call(counted)
    assert all(result.retractions == 3 for result in results)
    assert after["preemptions"] - before["preemptions"] == 9
    assert after["compactions"] - before["compactions"] > compactions(prompts, results)
    assert [len(result.tokens) for result in results] == [250] * 3, "nothing may be sent twice"
    assert [result.messages for result in results] == [250] * 3, "a message a token"
    assert furthest(results, expect(llama, prompts, results)) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


def test_retracted_requests_are_aborted(scheduler: Scheduler, llama: Path) -> None:
    """One while it waits, one while its tokens are fed again; the last one goes on."""
    numbers = scheduler.add(PROMPTS[:3], sampling(250), stream=True)
    scheduler.run(150)
    scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
    scheduler.run(1)
    sent = [len(result.tokens) for result in scheduler.results[numbers]]
    scheduler.call(dispatch, "AbortReq", rid="0")
    scheduler.call(dispatch, "ContinueGenerationReqInput")
    scheduler.run(40)
    scheduler.call(dispatch, "AbortReq", rid="1")
    scheduler.run()
    *aborted, left = scheduler.results[numbers]
    assert [result.finish["type"] for result in aborted] == ["abort", "abort"]
    assert [len(result.tokens) for result in aborted] == sent[:2]
    assert len(left.tokens) == 250
    assert furthest([left], expect(llama, PROMPTS[2:3], [left])) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


def test_streams_stops_and_aborts(scheduler: Scheduler, llama: Path) -> None:
    greedy = sampling(200, temperature=0.0)
    (whole,) = scheduler.generate(PROMPTS[:1], greedy)
    stop = next(token for token in reversed(whole.tokens) if whole.tokens.index(token) > 100)
    stopped = {**greedy, "stop_token_ids": [stop], "ignore_eos": False}
    (streamed,) = scheduler.generate(PROMPTS[:1], stopped, stream=True)
    length = whole.tokens.index(stop) + 1
    assert streamed.tokens == whole.tokens[:length]
    assert streamed.messages == length, "a message a token"
    assert streamed.finish == {"type": "stop", "matched": stop}
    numbers = scheduler.add([PROMPTS[2], PROMPTS[4], *PROMPTS[5:9]], sampling(300))
    scheduler.run(160)
    for number in range(numbers.start + 1, numbers.stop):  # one that has evicted, and some that wait
        scheduler.call(dispatch, "AbortReq", rid=str(number))
    scheduler.run()
    left, *aborted = scheduler.results[numbers]
    assert all(result.finish["type"] == "abort" for result in aborted)
    assert 100 < len(aborted[0].tokens) < 300
    assert len(left.tokens) == 300
    assert furthest([left], expect(llama, PROMPTS[2:3], [left])) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


def test_seeds(scheduler: Scheduler, llama: Path) -> None:
    """The noise belongs to a seed and a place in the sequence: evictions do not shift it, retractions repeat it."""
    prompts, seeds = [PROMPTS[1]] * 2 + [PROMPTS[2]], [1, 2, 2]
    chosen = [sampling(200, sampling_seed=seed) for seed in seeds]
    scheduler.call(heed_seeds)
    results = scheduler.generate(prompts, chosen)
    numbers = scheduler.add(prompts, chosen)
    scheduler.run(130)
    scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
    scheduler.call(dispatch, "ContinueGenerationReqInput")
    scheduler.run()
    retracted = scheduler.results[numbers]
    # the position of the token that is fed
    starts = [len(prompt) - 1 for prompt in prompts]
    expected = scheduler.call(drawn, expect(llama, prompts, results), seeds, starts)
    assert [result.tokens for result in results] == expected
    assert all(result.retractions == 1 for result in retracted)
    assert [result.tokens for result in retracted] == expected


def test_logprobs_of_prompts(scheduler: Scheduler, llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    results = scheduler.generate(PROMPTS[:3], sampling(150), logprob_start_len=0)
    for prompt, result in zip(PROMPTS, results, strict=False):
        with torch.no_grad():
            row = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        first, *others = result.prompt_logprobs
        assert first is None
        assert others == pytest.approx([row[at, token].item() for at, token in enumerate(prompt[1:])], abs=TOLERANCE)
    assert furthest(results, expect(llama, PROMPTS[:3], results)) < TOLERANCE


def test_a_prompt_that_comes_to_the_scheduler_and_is_too_long(scheduler: Scheduler) -> None:
    long, right = scheduler.generate([random_tokens(130, 9), PROMPTS[0]], sampling(5))
    assert long.finish["type"] == "abort"
    assert "budget 140 is too small for a question of 130 tokens" in long.finish["message"]
    assert len(right.tokens) == 5
