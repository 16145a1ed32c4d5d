"""Completions under way: what is asked of each, what its tokens write, and what it tells."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dynts.cache.lengths import CacheUse
from dynts.chat.spelling import RowText, Spelling
from dynts.chat.streaming import StopStrings
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
