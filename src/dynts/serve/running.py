"""A batch that is being generated, seen token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from dynts.cache.cache import BudgetCache
from dynts.markers import ThinkFormat
from dynts.serve.matching import StopStrings
from dynts.serve.metrics import Metrics
from dynts.serve.row import CacheUse, Ended, Piece, Row
from dynts.written import hidden_tokens


@dataclass(slots=True)
class _Writing:
    """A row's text so far, as far as it matters for what comes."""

    row: Row
    stop: StopStrings
    decoder: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=False))
    generated_tokens: int = 0
    cache: CacheUse = field(default_factory=CacheUse)


class RunningBatch(StoppingCriteria):
    """Hands out each row's text as it comes, and tells `generate` which rows have ended.

    Args:
        rows: of the batch.
        cache: that of the batch.
        tokenizer: the model's.
        end_tokens: ids that end a turn.
        metrics: what to count in.
        stop_strings: strings that end any row, beside its own.
        format: how the model writes its think markers; None for what the tokenizer tells.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        cache: BudgetCache,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        metrics: Metrics,
        stop_strings: tuple[str, ...] = (),
        format: ThinkFormat | None = None,
    ) -> None:
        self.live = {number: _Writing(row, StopStrings((*row.stop, *stop_strings))) for number, row in enumerate(rows)}
        self.cache = cache
        self.backend = tokenizer.backend_tokenizer
        self.hidden = hidden_tokens(tokenizer, end_tokens, format)
        self.end_tokens = end_tokens
        self.metrics = metrics
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended. input_ids: int64 [rows, columns], the new token last."""
        tokens = input_ids[:, -1].tolist()
        for number, writing in list(self.live.items()):
            if not writing.row.cancelled:
                self._observe(number, writing)
            if writing.row.cancelled or self._write(writing, tokens[number]):
                del self.live[number]
                self.ended[number] = True
        self.metrics.running.set(len(self.live))
        self.metrics.live_kv_tokens.set(sum(writing.cache.cached_tokens for writing in self.live.values()))
        return torch.tensor(self.ended, device=input_ids.device)  # type: ignore[return-value]

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
        text = ""
        if token not in self.hidden:
            text = stop.feed(writing.decoder.step(self.backend, token) or "")
        finished = turn_ended or stop.found
        ended = finished or writing.generated_tokens >= row.sampling.max_new_tokens
        if ended:
            text += stop.flush()
        if text:
            row.tell(Piece(row.index, text))
        if ended:
            reason = "stop" if finished else "length"
            row.tell(Ended(row.index, reason, writing.generated_tokens, writing.cache))  # type: ignore[arg-type]
        return ended
