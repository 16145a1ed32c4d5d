"""The schedulers: a request's evictions follow from its length, so they are known before the worker makes them."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from dynts.engines.counters import Counters
from dynts.engines.vllm.blocks import BudgetBlocks
from dynts.engines.vllm.refusals import check_kv_cache
from dynts.engines.vllm.settings import KEY, configured


class BudgetScheduling(Scheduler):
    """Adds the budget to a scheduler of vLLM.

    A step ends where a request reaches the budget. Decoding adds one token a step anyway; but a preempted request is
    fed its prompt and all that it had generated, and stops for each eviction where it had evicted before.
    """

    kv_cache_manager: BudgetBlocks

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_kv_cache(self.kv_cache_config)
        settings = configured(self.vllm_config.additional_config[KEY])
        self.kv_cache_manager = BudgetBlocks.adopt(self.kv_cache_manager, settings.schedule)
        self.budget = settings.budget
        self.counters = Counters()

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        return min(tokens, self.kv_cache_manager.room(request, num_computed_tokens))

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        blocks = self.kv_cache_manager
        held = {name: blocks.held(self.requests[name]) for name in scheduler_output.num_scheduled_tokens}
        due = [name for name, tokens in held.items() if tokens >= self.budget]
        dropped = sum(blocks.evict(self.requests[name]) for name in due)
        self.counters.note_step(len(held), sum(held.values()), len(due), dropped)
        scheduler_output.dynts_due = due

    def _preempt_request(self, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(*args, **kwargs)
        self.counters.preemptions += 1

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """See `Scheduler`.

        Raises:
            RuntimeError: the worker did not evict what it had to, so what it computed is wrong.
        """
        due = scheduler_output.dynts_due
        if due and model_runner_output.__dict__.get("dynts_compacted") != due:
            raise RuntimeError(f"dynts: the worker has not compacted the KV cache of {', '.join(due)}")
        return super().update_from_output(scheduler_output, model_runner_output)


class BudgetScheduler(BudgetScheduling):
    """Schedules a step when the one before has ended."""


class BudgetAsyncScheduler(BudgetScheduling, AsyncScheduler):
    """Schedules a step while the one before runs."""
