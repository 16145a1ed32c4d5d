"""A batch that is being generated, seen token by token."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria

from dynts.cache.cache import BudgetCache
from dynts.chat.streaming import StopStrings
from dynts.decode.sampling import NOT_FINITE, FiniteRows
from dynts.serve.completion import CacheUse, Ended, Piece, Row
from dynts.serve.errors import ApiError
from dynts.serve.metrics import Metrics
from dynts.serve.text import RowText, Spelling

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Writing:
    """A row's text so far, as far as it matters for what comes."""

    row: Row
    stop: StopStrings
    text: RowText
    generated_tokens: int = 0
    cache: CacheUse = field(default_factory=CacheUse)


class RunningBatch(StoppingCriteria):
    """Hands out each row's text as it comes, and tells `generate` which rows have ended. A row that fails gets an error of its
    own and ends; the others go on.

    Args:
        rows: of the batch.
        cache: that of the batch.
        spelling: of the model's tokens.
        finite: tells the rows whose logits are no numbers.
        metrics: what to count in.
        stop_strings: strings that end any row, beside its own.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        cache: BudgetCache,
        spelling: Spelling,
        finite: FiniteRows,
        metrics: Metrics,
        stop_strings: tuple[str, ...] = (),
    ) -> None:
        self.live = {
            number: _Writing(row, StopStrings((*row.stop, *stop_strings)), RowText(spelling, row.continues))
            for number, row in enumerate(rows)
        }
        self.cache = cache
        self.end_tokens = spelling.end_tokens
        self.finite = finite
        self.metrics = metrics
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended. input_ids: int64 [rows, columns], the new token last."""
        tokens, failed = self.finite.latest(input_ids)
        for number, writing in list(self.live.items()):
            if self._step(number, writing, tokens[number], failed[number]):
                del self.live[number]
                self.ended[number] = True
        self.metrics.running.set(len(self.live))
        self.metrics.live_kv_tokens.set(sum(writing.cache.cached_tokens for writing in self.live.values()))
        return torch.tensor(self.ended, device=input_ids.device)  # type: ignore[return-value]

    def _step(self, number: int, writing: _Writing, token: int, failed: bool) -> bool:
        """Take a row's token; whether the row has ended."""
        row = writing.row
        if row.cancelled:
            return True
        try:
            self._observe(number, writing)
            if not failed:
                return self._write(writing, token)
            message = f"{NOT_FINITE} after {writing.generated_tokens} tokens of this completion"
            log.error("row %d of a batch: %s", number, message)
        except Exception:
            log.exception("row %d of a batch failed", number)
            message = "this completion failed; the server's log says why"
        self.metrics.failed.inc()
        row.tell(ApiError(500, message, code="failed"))
        return True

    def _observe(self, number: int, writing: _Writing) -> None:
        compactions, evicted = writing.cache.compactions, writing.cache.evicted_tokens
        writing.cache.observe(self.cache.lengths[number], self.cache.next_positions[number])
        self.metrics.compactions.inc(writing.cache.compactions - compactions)
        self.metrics.evicted_tokens.inc(writing.cache.evicted_tokens - evicted)

    def _write(self, writing: _Writing, token: int) -> bool:
        """Hand out what a token adds; whether the row has ended."""
        row, stop = writing.row, writing.stop
        writing.generated_tokens += 1
        self.metrics.generated_tokens.inc()
        turn_ended = token in self.end_tokens
        text = stop.feed(writing.text.feed(token))
        finished = turn_ended or stop.found
        ended = finished or writing.generated_tokens >= row.sampling.max_new_tokens
        if ended and not stop.found:
            text += stop.feed(writing.text.flush()) + stop.flush()
        if text:
            row.tell(Piece(row.index, text))
        if ended:
            reason = "stop" if finished else "length"
            row.tell(Ended(row.index, reason, writing.generated_tokens, writing.cache))  # type: ignore[arg-type]
        return ended
