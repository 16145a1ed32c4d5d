"""Who may start: a request is admitted when there is room for the most that it and the running ones ever hold."""

from typing import Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder


def most_cached(req: Req, budget: int) -> int:
    """Return the most tokens that a request ever holds.

    Args:
        req: the request.
        budget: of a request, in tokens.
    """
    return min(len(req.origin_input_ids) + req.sampling_params.max_new_tokens, budget)


class BudgetAdder(PrefillAdder):
    """Reserves what requests will hold, where SGLang guesses how long they will be, and so retracts some.

    Args:
        budget: of a request, in tokens.
    """

    def __init__(self, *args: Any, budget: int, **kwargs: Any) -> None:
        self.budget = budget
        super().__init__(*args, **kwargs)

    def add_one_req(self, req: Req, has_chunked_req: bool, truncation_align_size: int | None) -> AddReqResult:
        """Admit a request if there is room. Arguments as SGLang's."""
        # without a radix cache SGLang plans such requests by lengths that they do not have here
        ignores, req.sampling_params.ignore_eos = req.sampling_params.ignore_eos, False
        try:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        finally:
            req.sampling_params.ignore_eos = ignores

    def preempt_to_schedule(self, req: Req) -> bool:
        """Push out less urgent requests, if they leave as much as this one will take. Arguments as SGLang's."""
        asked = req.sampling_params.max_new_tokens
        req.sampling_params.max_new_tokens = most_cached(req, self.budget) - len(req.origin_input_ids)
        try:
            return bool(super().preempt_to_schedule(req))
        finally:
            req.sampling_params.max_new_tokens = asked

    def _get_running_request_total_token_offset(self, req: Req) -> int:
        return most_cached(req, self.budget) - req.kv.kv_committed_len

    def _check_prefill_budget(self, req: Req, *, total_tokens: int, **rest: Any) -> Any:
        needed = most_cached(req, self.budget) - req.prefix_len + self.per_req_token_overhead
        return super()._check_prefill_budget(req, total_tokens=needed, **rest)

    def _update_prefill_budget(
        self, prefix_len: int, extend_input_len: int, max_new_tokens: int, *args: Any, **kwargs: Any
    ) -> None:
        # SGLang charges nothing for what comes after a prompt's piece, and at most 4,096 tokens after its end
        admitted = self.can_run_list[-1]
        rest = most_cached(admitted, self.budget) - admitted.extend_end
        super()._update_prefill_budget(prefix_len, extend_input_len, rest, *args, **kwargs)
