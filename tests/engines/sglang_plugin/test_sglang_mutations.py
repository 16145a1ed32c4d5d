"""What the checks of the other files are worth: each fault that an eviction invites, made on purpose, is noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from budget_cases import PROMPTS, TOLERANCE, dispatch, expect, furthest
from sglang_engines import Scheduler, SchedulerError, needs_sglang, sampling

from decoding import random_tokens
from transformers_path import MARKERS

pytestmark = needs_sglang


def never_freed(scheduler: Any) -> None:
    evictor = scheduler.tp_worker.evictor
    drop = evictor._drop

    def forgetful(batch: Any, due: Any) -> Any:
        with mock.patch.object(batch.token_to_kv_pool_allocator, "free"):
            return drop(batch, due)

    evictor._drop = forgetful


def freed_twice(scheduler: Any) -> None:
    evictor = scheduler.tp_worker.evictor
    drop = evictor._drop

    def eager(batch: Any, due: Any) -> Any:
        allocator = batch.token_to_kv_pool_allocator
        free = allocator.free
        with mock.patch.object(allocator, "free", lambda slots: (free(slots), free(slots))):
            return drop(batch, due)

    evictor._drop = eager


def dropped_ones_kept(scheduler: Any) -> None:
    """Keeps other slots of the row than those that it does not free."""
    evictor = scheduler.tp_worker.evictor
    drop = evictor._drop

    def careless(batch: Any, due: Any) -> Any:
        dropped = drop(batch, due)
        table = batch.req_to_token_pool.req_to_token
        for number in due:
            row, length = batch.reqs[number].kv.req_pool_idx, int(batch.seq_lens_cpu[number])
            table[row, :length] = table[row, :length].flip(0)
        return dropped

    evictor._drop = careless


def positions_among_the_cached(scheduler: Any) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    hooked = ForwardBatch.init_new

    def init_new(batch: Any, *args: Any, **kwargs: Any) -> Any:
        made = hooked(batch, *args, **kwargs)
        if made.forward_mode.is_decode():
            made.positions = made.seq_lens - 1
        return made

    ForwardBatch.init_new = init_new


def scores_of_others(scheduler: Any) -> None:
    evictor = scheduler.tp_worker.evictor
    take_note = evictor.take_note
    evictor.take_note = lambda batch, hidden: take_note(batch, hidden.roll(1, 0))


def evicted_in_the_radix_tree(scheduler: Any) -> None:
    evictor = scheduler.tp_worker.evictor
    evict = evictor.evict

    def proud(batch: Any, due: Any) -> Any:
        dropped = evict(batch, due)
        for number in due:
            batch.reqs[number].skip_radix_cache_insert = False
        return dropped

    evictor.evict = proud


def no_replay(scheduler: Any) -> None:
    from sglang.srt.managers.schedule_batch import Req

    from dynts.engines.sglang.request import BudgetReq

    BudgetReq.reset_for_retract = Req.reset_for_retract


def difference(scheduler: Scheduler, llama: Path) -> float:
    """Of the log-probabilities of two requests that are retracted, and of their next turns.

    They may not close their thinking, after which scores would decide nothing.
    """
    thinking = {"logit_bias": {str(MARKERS[1]): -1000.0}}
    numbers = scheduler.add(PROMPTS[:2], sampling(200, **thinking))
    scheduler.run(120)
    scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
    scheduler.call(dispatch, "ContinueGenerationReqInput")
    scheduler.run()
    first = scheduler.results[numbers]
    turns = [
        [*prompt, *result.tokens[:40], *random_tokens(5, number)]
        for number, (prompt, result) in enumerate(zip(PROMPTS[:2], first, strict=True))
    ]
    results = [*first, *scheduler.generate(turns, sampling(20, **thinking))]
    rows = expect(llama, [*PROMPTS[:2], *turns], results)
    barred = torch.tensor([MARKERS[1]])
    return furthest(results, [row.index_fill(1, barred, float("-inf")).log_softmax(-1) for row in rows])


def test_without_a_fault_nothing_is_noticed(scheduler: Scheduler, llama: Path) -> None:
    assert difference(scheduler, llama) < TOLERANCE


@pytest.mark.parametrize(
    ("mutate", "noticed"),
    [
        (never_freed, "Mem Leak"),
        (freed_twice, "Mem Leak"),
        (dropped_ones_kept, "use-after-free"),
        (no_replay, "use-after-free"),
    ],
)
def test_faults_that_sglang_notices(
    scheduler: Scheduler, llama: Path, mutate: Callable[[Any], None], noticed: str
) -> None:
    scheduler.call(mutate)
    with pytest.raises(SchedulerError, match=noticed):
        difference(scheduler, llama)


@pytest.mark.parametrize("mutate", [positions_among_the_cached, scores_of_others, evicted_in_the_radix_tree])
def test_faults_that_log_probabilities_show(scheduler: Scheduler, llama: Path, mutate: Callable[[Any], None]) -> None:
    scheduler.call(mutate)
    assert difference(scheduler, llama) > 100 * TOLERANCE
