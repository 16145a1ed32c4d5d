"""The queue of waiting rows and the thread that generates for them, a batch at a time."""

import logging
import threading
from collections import deque
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from dynts.cache.interface import CACHE
from dynts.chat.markers import ThinkFormat
from dynts.decode.checkpoint import stop_strings
from dynts.decode.compress import Session
from dynts.decode.sampling import FiniteRows
from dynts.decode.static_rows import generate_rows
from dynts.models import end_tokens, input_device
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError
from dynts.serve.running import Row, RunningBatch, Spelling

_GATHER = 0.01
"""Seconds that the first of a batch waits for others that came with it."""
_RETRY_AFTER = 5

log = logging.getLogger(__name__)


class Batcher:
    """Takes rows from any thread, and generates for at most `max_batch` of them at a time.

    A batch is what waits when the last one ends, in the order of arrival; nothing joins a batch that runs. It runs
    until its longest row ends.

    Args:
        session: an entered `compress` context.
        tokenizer: the model's.
        max_batch: rows at a time.
        max_waiting: rows that may wait.
        metrics: what to count in.
        format: how the model writes its think markers; None for what the tokenizer tells.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: PreTrainedTokenizerBase,
        max_batch: int,
        max_waiting: int,
        metrics: Metrics,
        format: ThinkFormat | None = None,
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.metrics = metrics
        self._spelling = Spelling(tokenizer, end_tokens(session.model), format)
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._stopped = False
        self._changed = threading.Condition()
        # a daemon, because a long prefill must not keep a server alive that was told to end
        self._thread = threading.Thread(target=self._run, name="dynts-batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether rows are taken."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, rows: Sequence[Row]) -> None:
        """Put rows into the queue, all or none.

        Raises:
            ApiError: the queue is full, or the server ends.
        """
        with self._changed:
            if not self.alive:
                raise _ending()
            waiting = len(self._waiting)
            if waiting + len(rows) > self.max_waiting:
                raise ApiError(
                    429,
                    f"{waiting} completions are waiting and {self.max_waiting} may: try again later",
                    code="queue_full",
                    retry_after=_RETRY_AFTER,
                )
            self._waiting.extend(rows)
            self._noted()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Forget rows that nobody waits for; a row that runs ends at its next token."""
        with self._changed:
            for row in rows:
                row.cancelled = True
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            self._noted()

    def stop(self, seconds: float) -> bool:
        """End all rows with an error, take no more, and wait for the thread; whether it ended in time."""
        with self._changed:
            self._stopped = True
            left = [*self._running, *self._waiting]
            self._waiting.clear()
            for row in left:
                if not row.cancelled:
                    row.cancelled = True
                    row.tell(_ending())
            self._noted()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _noted(self) -> None:
        self.metrics.waiting.set(len(self._waiting))
        self._changed.notify_all()

    def _run(self) -> None:
        while rows := self._gather():
            self._generate(rows)

    def _gather(self) -> list[Row]:
        """Return the rows of the next batch; none if the server ends."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
                # requests that were sent together should run together
                self._changed.wait_for(lambda: self._stopped or len(self._waiting) >= self.max_batch, _GATHER)
            self._running = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            self._noted()
            return self._running

    def _generate(self, rows: list[Row]) -> None:
        model, tokenizer = self.session.model, self.tokenizer
        self.metrics.running.set(len(rows))
        try:
            cache = self.session.new_cache()
            finite = FiniteRows(len(rows), input_device(model))
            batch = RunningBatch(rows, cache, self._spelling, finite, self.metrics, stop_strings(model))
            generate_rows(
                model,
                tokenizer,
                [row.prompt for row in rows],
                [row.sampling for row in rows],
                finite,
                stopping_criteria=StoppingCriteriaList([batch]),
                **{CACHE: cache},
            )
        except Exception:
            log.exception("a batch of %d rows failed", len(rows))
            error = ApiError(500, "the model failed on this request; the server's log says why", code="failed")
            for row in rows:  # those that have ended are not listened to any more
                row.tell(error)
        finally:
            self.session.stats.clear()
            with self._changed:
                self._running = []
            self.metrics.running.set(0)
            self.metrics.live_kv_tokens.set(0)


def _ending() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=_RETRY_AFTER)
