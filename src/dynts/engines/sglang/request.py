"""A request, and how one that was retracted gets back to where it was.

SGLang computes a retracted request anew from its prompt and all that it wrote, in one pass. That is not what the budget
had left of it, and tells no scores of single tokens. So it starts from its prompt, and what it wrote is fed again token
by token, with the same evictions as before.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Req, ReqLogprob, ScheduleBatch
from sglang.srt.sampling.sampling_mask import SamplingMaskRows


@dataclass(slots=True)
class Written:
    """What a retracted request had written.

    Attributes:
        tokens: their ids.
        logprobs: their log-probabilities, by SGLang's names of the lists.
        sampling_mask: of those not yet sent, what they were drawn from; None unless asked for.
        fed: how many have been sent back to the model.
    """

    tokens: "array[int]"
    logprobs: dict[str, list[Any]]
    sampling_mask: Any
    fed: int = 0


_LOGPROBS = [item.name for item in fields(ReqLogprob) if item.name.startswith("output_")]


class BudgetReq(Req):
    """A request under the budget.

    Attributes:
        noted: whether the ledger knows it.
        replay: what it had written when it was retracted; None unless it is on its way back.
    """

    output_ids: "array[int]"
    skip_radix_cache_insert: bool
    sampling_mask_rows: SamplingMaskRows | None
    noted = False
    replay: Written | None = None
    _fresh_grammar: Any = None

    def init_next_round_input(self, *args: Any, **kwargs: Any) -> None:
        """Prepare to read the prompt. Arguments as SGLang's."""
        if self.grammar is not None and self._fresh_grammar is None and not self.output_ids:
            self._fresh_grammar = self.grammar.copy()
        super().init_next_round_input(*args, **kwargs)

    def reset_for_retract(self) -> None:
        """Start again from the prompt."""
        evicted = self.noted and self.skip_radix_cache_insert
        super().reset_for_retract()
        self.noted = False
        if evicted:
            self.skip_radix_cache_insert = False
        logprobs, sampling_mask = self._take_logprobs(), self.sampling_mask_rows
        if self.replay is not None:
            self.replay.fed = 0
        elif self.output_ids:
            self.replay = Written(self.output_ids, logprobs, sampling_mask)
        else:
            return
        self.output_ids = array("q")
        self.sampling_mask_rows = None if sampling_mask is None else SamplingMaskRows()
        # what SGLang counts of each token is counted anew
        self.reasoning_tokens, self._is_reasoning_over = 0, False
        self._think_end_match_len = self._think_start_match_len = 0
        if self._fresh_grammar is not None:
            self.grammar = self._fresh_grammar.copy()

    def end_replay(self) -> None:
        """Be what it was when it was retracted, and go on from there."""
        assert self.replay is not None
        self.output_ids = self.replay.tokens
        for name, values in self.replay.logprobs.items():
            setattr(self.logprob, name, values)
        self.sampling_mask_rows = self.replay.sampling_mask
        self.replay = None

    def _take_logprobs(self) -> dict[str, list[Any]]:
        """The lists of log-probabilities of what was written; new ones take their place."""
        taken = {name: values for name in _LOGPROBS if (values := getattr(self.logprob, name)) is not None}
        for name in taken:
            setattr(self.logprob, name, [])
        return taken


def force_replayed(batch: ScheduleBatch, result: Any, upload: Callable[[list[int]], torch.Tensor]) -> None:
    """Let requests in a replay write what they had written, in place of what was drawn.

    Args:
        batch: that was run.
        result: SGLang's; its tokens are replaced.
        upload: puts numbers on the device without waiting for the step, which is still under way.
    """
    forced = {}
    for number, req in enumerate(batch.reqs):
        # a prompt that is read in pieces has written nothing yet
        if req.replay is not None and req is not batch.chunked_req and req.replay.fed < len(req.replay.tokens):
            forced[number] = req.replay.tokens[req.replay.fed]
            req.replay.fed += 1
    if forced:
        drawn = result.next_token_ids
        tokens = upload([*forced.values()]).to(drawn.dtype)
        result.next_token_ids = drawn.index_copy(0, upload([*forced]), tokens)
