"""Completions under way: what is asked of each, what its tokens write, and what it tells."""

import codecs
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from dynts.cache.lengths import CacheUse
from dynts.chat.markers import ThinkFormat
from dynts.chat.scanner import spellings
from dynts.chat.streaming import StopStrings
from dynts.chat.written import hidden_tokens
from dynts.config import Sampling
from dynts.decode.sampling import NOT_FINITE
from dynts.decode.tasks import RowTask, RowToken
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
    cache: CacheUse


Event = Piece | Ended | ApiError


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A completion that is asked for.

    Args:
        index: which of the request's completions it is.
        prompt: token ids.
        sampling: how to draw tokens, and when to stop.
        stop: strings that end it.
        tell: takes its events, from any thread.
        continues: whether its text goes on with the prompt's, or is a message of its own.

    Attributes:
        asked: when it was asked for, by `time.perf_counter`.
    """

    index: int
    prompt: list[int]
    sampling: Sampling
    stop: tuple[str, ...]
    tell: Callable[[Event], None]
    continues: bool = False
    asked: float = field(default_factory=time.perf_counter, init=False)


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


class RunningRow:
    """A completion under way: makes text of its tokens and hands it out as it comes.

    What fails in its text fails for it alone: it tells of the error, and ends.

    Args:
        row: what is asked for.
        spelling: of the model's tokens.
        metrics: what to count in.
        stop_strings: strings that end any row, beside its own.

    Attributes:
        task: what the decode loop is given.
        cache: what its cache did so far.
        error: that of a forward pass or a step which ended it; None without one.
    """

    def __init__(self, row: Row, spelling: Spelling, metrics: Metrics, stop_strings: tuple[str, ...] = ()) -> None:
        self.row = row
        self.task = RowTask(row.prompt, row.sampling, self.take, self.fail)
        self.cache = CacheUse()
        self.error: Exception | None = None
        self._end_tokens = spelling.end_tokens
        self._metrics = metrics
        self._stop = StopStrings((*row.stop, *stop_strings))
        self._text = RowText(spelling, row.continues)
        self._generated_tokens = 0
        self._latest = row.asked
        self._ended = False

    @property
    def gone(self) -> bool:
        """Whether it has ended, or nobody waits for it any more."""
        return self._ended or self.task.cancelled

    def take(self, token: RowToken) -> bool:
        """Take the next token, and return whether the completion has ended with it."""
        try:
            self._observe(token)
            if not token.failed:
                self._ended = self._write(token.token)
                return self._ended
            message = f"{NOT_FINITE} after {self._generated_tokens} tokens of this completion"
            log.error("a completion failed: %s", message)
        except Exception:
            log.exception("a completion failed")
            message = "this completion failed; the server's log says why"
        self.end(message)
        return True

    def fail(self, error: Exception) -> None:
        """End by an error that is not its own, such as that of a forward pass; who logs it calls `end` too."""
        self.error, self._ended = error, True

    def end(self, message: str) -> None:
        """End by an error, and tell of it."""
        self._ended = True
        self._metrics.failed.inc()
        self.row.tell(ApiError(500, message, code="failed"))

    def _observe(self, token: RowToken) -> None:
        compactions, evicted = len(self.cache.compactions), self.cache.evicted_tokens
        self.cache.observe(token.cached, token.fed)
        self._metrics.compactions.inc(len(self.cache.compactions) - compactions)
        self._metrics.evicted_tokens.inc(self.cache.evicted_tokens - evicted)

    def _write(self, token: int) -> bool:
        """Hand out what a token adds; whether the completion has ended."""
        row, stop = self.row, self._stop
        self._count()
        turn_ended = token in self._end_tokens
        text = stop.feed(self._text.feed(token))
        finished = turn_ended or stop.found
        ended = finished or self._generated_tokens >= row.sampling.max_new_tokens
        if ended and not stop.found:
            text += stop.feed(self._text.flush()) + stop.flush()
        if text:
            row.tell(Piece(row.index, text))
        if ended:
            reason: FinishReason = "stop" if finished else "length"
            row.tell(Ended(row.index, reason, self._generated_tokens, self.cache))
        return ended

    def _count(self) -> None:
        """Count a token, and how long it took."""
        now = time.perf_counter()
        seconds = self._metrics.time_per_token if self._generated_tokens else self._metrics.time_to_first_token
        seconds.observe(now - self._latest)
        self._latest = now
        self._generated_tokens += 1
        self._metrics.generated_tokens.inc()
