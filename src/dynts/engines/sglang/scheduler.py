"""What SGLang's scheduler does under the budget: evict before a step is prepared, admit what has room to its end."""

import functools
import logging
import os
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.runtime_context import get_context, get_device, get_schedule

from dynts.engines.counters import Counters
from dynts.engines.sglang.admission import BudgetAdder
from dynts.engines.sglang.handshake import READY, REFUSED
from dynts.engines.sglang.plugin import check_hooks
from dynts.engines.sglang.refusals import settings_of
from dynts.engines.sglang.request import BudgetReq, force_replayed
from dynts.engines.sglang.streamer import BudgetStreamer
from dynts.engines.sglang.worker import BudgetWorker
from dynts.errors import DyntsError

logger = logging.getLogger(__name__)

DEFAULT_REQUESTS = 256
"""Running requests unless --max-running-requests says otherwise: each takes room in the ledger, and SGLang's own
default is at least 2,048."""


class EvictingScheduler(Scheduler):
    """Adds the budget to SGLang's scheduler. A request's evictions follow from its length alone."""

    tp_worker: BudgetWorker
    refusal: DyntsError | None = None

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        self.counters = Counters()
        try:
            check_hooks()
            settings = settings_of(server_args)
            if settings is None:
                raise DyntsError("SGLang has not checked the server's arguments, so there are no settings of dynts")
            self.settings = settings
            changed: dict[str, Any] = {"return_hidden_states_mode": "last"}
            if get_schedule().max_running_requests is None:
                changed["max_running_requests"] = DEFAULT_REQUESTS
            # server arguments are sealed by now; decode graphs are recorded for what the server returns at most
            get_context().override("dynts", **changed)
            super().__init__(server_args, *args, **kwargs)
        except DyntsError as error:
            # were it raised, SGLang would kill the process that started this one
            self.refusal = error
            return
        logger.info("dynts: KV cache budget of %d tokens a request, predictor %s", settings.budget, settings.predictor)

    def init_tp_model_worker(self) -> None:
        """Load the model, with the budget's worker around it."""
        self.tp_worker = BudgetWorker(
            self.settings,
            server_args=self.server_args,
            gpu_id=get_device().gpu_id,
            nccl_port=self.nccl_port,
        )

    def init_req_max_new_tokens(self, req: Req) -> None:
        """Let a request write as long as the model's context allows: the pool has room, whatever its length."""
        try:
            self.settings.schedule.check_question(len(req.origin_input_ids))
        except DyntsError as error:
            # `guard_request` has said so to whoever asked, unless the request came by another way
            req.set_finish_with_abort(str(error))
        given = req.sampling_params
        asked, least = given.max_new_tokens, given.min_new_tokens
        super().init_req_max_new_tokens(req)
        if req.to_finish is not None:
            return
        limits = [asked, self.max_new_tokens_limit or None, self.max_req_len - len(req.origin_input_ids) - 1]
        given.max_new_tokens = max(0, min(limit for limit in limits if limit is not None))
        given.min_new_tokens = min(least, given.max_new_tokens)

    def get_prefill_adder_class(self) -> type[PrefillAdder]:
        """Admit by the most that a request ever holds."""
        return functools.partial(BudgetAdder, budget=self.settings.budget)  # type: ignore[return-value]

    def get_output_streamer_class(self) -> type[SchedulerOutputStreamer]:
        """Send no token twice, and what the budget did with the last one."""
        return functools.partial(BudgetStreamer, settings=self.settings)  # type: ignore[return-value]

    def _create_generation_req(self, recv_req: Any, *args: Any, **kwargs: Any) -> Req:
        return BudgetReq(*args, **kwargs)

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        self.counters.preemptions += req.is_retracted
        super()._add_request_to_queue(req, is_retracted)

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        """Evict where the budget is reached, then prepare the next step: it needs less room, and none is retracted."""
        budget = self.settings.budget
        due = [number for number, length in enumerate(batch.seq_lens_cpu.tolist()) if length >= budget]
        if due:
            ending = [req for req in batch.reqs if req.finished()] + self._reqs_finishing_inflight(batch)
            due = [number for number in due if batch.reqs[number] not in ending]
        dropped = 0
        if due:
            if self.enable_overlap:
                # the step under way reads the very rows that are rewritten here, and writes the latest scores
                self.schedule_stream.wait_stream(self.forward_stream)
            dropped = self.tp_worker.evictor.evict(batch, due)
        prepared = super().update_running_batch(batch)
        requests = 0 if prepared is None else len(prepared.reqs)
        live = int(prepared.seq_lens_cpu.sum()) if requests else 0
        self.counters.note_step(requests, live, len(due), dropped)
        return prepared

    def on_idle(self) -> None:
        """Do what SGLang does without requests; none holds a token."""
        if self.counters.live_tokens:
            self.counters.note_step(0, 0, 0, 0)
        super().on_idle()

    def _relay_forward_payload(self, batch: ScheduleBatch, future_indices: Any, batch_result: Any) -> None:
        force_replayed(batch, batch_result, self.tp_worker.evictor.ledger.upload)
        super()._relay_forward_payload(batch, future_indices, batch_result)

    def get_init_info(self) -> dict[str, Any]:
        """Tell the process that started this one that the budget holds, or why not."""
        if self.refusal is not None:
            return {"status": "ready", "max_total_num_tokens": 0, "max_req_input_len": 0, REFUSED: self.refusal}
        return {**super().get_init_info(), READY: self.settings.budget}

    def run_event_loop(self) -> None:
        """Serve, unless the start was refused."""
        if self.refusal is not None:
            os._exit(1)  # there is nothing that SGLang could take down
        super().run_event_loop()
