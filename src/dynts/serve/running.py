"""Completions under way: what is asked of each, what its tokens write, what it tells; and the batch they run in."""

import codecs
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from dynts.cache.cache import BudgetCache
from dynts.chat.markers import ThinkFormat
from dynts.chat.scanner import spellings
from dynts.chat.streaming import StopStrings
from dynts.chat.written import hidden_tokens
from dynts.config import Sampling
from dynts.decode.sampling import NOT_FINITE, FiniteRows
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError, FinishReason

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a row."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A row's end: why it ended, how many tokens it generated, and what its cache did."""

    index: int
    finish_reason: FinishReason
    generated_tokens: int
    cache: "CacheUse"


Event = Piece | Ended | ApiError


@dataclass(slots=True)
class CacheUse:
    """What the cache did for one row, told by what it holds after every step."""

    compactions: int = 0
    evicted_tokens: int = 0
    peak_tokens: int = 0
    cached_tokens: int = 0

    def observe(self, cached: int, fed: int) -> None:
        """Take note of a step.

        Args:
            cached: tokens that the row has in the cache now.
            fed: tokens that it was fed so far.
        """
        evicted = fed - cached
        newly = evicted - self.evicted_tokens
        self.peak_tokens = max(self.peak_tokens, cached + newly)  # before the compaction, if there was one
        self.compactions += newly > 0
        self.evicted_tokens, self.cached_tokens = evicted, cached


@dataclass(slots=True, eq=False)
class Row:
    """A completion that is asked for.

    Args:
        index: which of the request's completions it is.
        prompt: token ids.
        sampling: how to draw tokens, and when to stop.
        stop: strings that end it.
        tell: takes its events, from any thread.
        continues: whether its text goes on with the prompt's, or is a message of its own.
        cancelled: nobody waits for it any more.
    """

    index: int
    prompt: list[int]
    sampling: Sampling
    stop: tuple[str, ...]
    tell: Callable[[Event], None]
    continues: bool = False
    cancelled: bool = field(default=False, init=False)


class Spelling:
    """What each token of a model writes, looked up once for all rows.

    Args:
        tokenizer: the model's.
        end_tokens: ids that end a turn.
        format: how the model writes its think markers; None for what the tokenizer tells.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int], format: ThinkFormat | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens
        self._hidden = hidden_tokens(tokenizer, end_tokens, format)
        self._bytes = spellings(tokenizer)

    def of(self, token: int) -> bytes:
        """Return the bytes of a token; none for those that a text leaves out, and for an id without a token."""
        return b"" if token in self._hidden or token >= len(self._bytes) else self._bytes[token]

    def of_first(self, token: int) -> bytes:
        """Return the bytes of a token that begins a text of its own.

        That is without the space that some tokenizers (SentencePiece, words) put before every word and take away where
        a text begins.
        """
        written = self.of(token)
        if written.startswith(b" ") and not str(self.tokenizer.decode([token])).startswith(" "):
            return written[1:]
        return written


class RowText:
    """A row's text as it comes.

    Bytes that are no whole character wait for those that complete it, those that never can become U+FFFD, one for each
    stretch as in every UTF-8 decoder: each token costs the same, whatever came before.

    Args:
        spelling: of the model's tokens.
        continues: whether the text goes on with the prompt's, where the space before its first word counts.
    """

    def __init__(self, spelling: Spelling, continues: bool) -> None:
        self._write = spelling.of if continues else spelling.of_first
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that is complete with this token."""
        written = self._write(token)
        if written:
            self._write = self._spelling.of
        return self._decoder.decode(written)

    def flush(self) -> str:
        """Return what was waited for in vain, once nothing more comes."""
        return self._decoder.decode(b"", final=True)


@dataclass(slots=True)
class _Writing:
    """A row's text so far, as far as it matters for what comes."""

    row: Row
    stop: StopStrings
    text: RowText
    generated_tokens: int = 0
    cache: CacheUse = field(default_factory=CacheUse)


class RunningBatch(StoppingCriteria):
    """Hands out each row's text as it comes, and tells `generate` which rows have ended.

    A row that fails gets an error of its own and ends; the others go on.

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
        """Return which rows have ended. input_ids: int64 [rows, columns], the new token last."""
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
