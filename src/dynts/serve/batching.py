"""The queue of completions that wait, and the thread that generates: they join as rows become free, and leave."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dynts.chat.markers import ThinkFormat
from dynts.chat.spelling import Spelling
from dynts.config import PREFILL_TOKENS
from dynts.decode.checkpoint import stop_strings
from dynts.decode.compress import Session
from dynts.decode.continuous import ContinuousBatch
from dynts.models import end_tokens
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError
from dynts.serve.running import Row, RunningRow

_RETRY_AFTER = 5

log = logging.getLogger(__name__)


class Batcher:
    """Takes rows from any thread, and generates for at most `max_batch` of them at a time.

    They join in the order of arrival, each at the next step when there is room for it, and leave when they end, fail,
    or nobody waits for them any more. Each running row gets a token at each step.

    Args:
        session: an entered `compress` context.
        tokenizer: the model's.
        max_batch: rows at a time.
        max_waiting: rows that may wait.
        metrics: what to count in.
        format: how the model writes its think markers; None for what the tokenizer tells.
        prefill_tokens: of prompts to read between two decode steps.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: PreTrainedTokenizerBase,
        max_batch: int,
        max_waiting: int,
        metrics: Metrics,
        format: ThinkFormat | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self.session = session
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.metrics = metrics
        self.prefill_tokens = prefill_tokens
        self._batch = self._new_batch()
        self._spelling = Spelling(tokenizer, end_tokens(session.model), format)
        self._stop_strings = stop_strings(session.model)
        self._waiting: deque[Row] = deque()
        self._running: list[RunningRow] = []
        self._stopped = False
        self._changed = threading.Condition()
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.running.set_function(lambda: len(self._live))
        metrics.live_kv_tokens.set_function(lambda: sum(running.cache.cached_tokens for running in self._live))
        # a daemon, because a long step must not keep a server alive that was told to end
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
            self._changed.notify_all()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Forget rows that nobody waits for; one that runs gives up its place before the next step."""
        with self._changed:
            self._waiting = deque(row for row in self._waiting if row not in rows)
            for running in self._running:
                if running.row in rows:
                    running.task.cancelled = True

    def stop(self, seconds: float) -> bool:
        """End all rows with an error, take no more, and wait for the thread; whether it ended in time."""
        with self._changed:
            self._stopped = True
            live = self._live
            for running in live:
                running.task.cancelled = True
            for row in [*(running.row for running in live), *self._waiting]:
                row.tell(_ending())
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def _live(self) -> list[RunningRow]:
        return [running for running in self._running if not running.gone]

    def _new_batch(self) -> ContinuousBatch:
        return ContinuousBatch(self.session, self.max_batch, self.prefill_tokens)

    def _run(self) -> None:
        while self._admit():
            try:
                self._batch.step()
            except Exception as error:  # of no forward pass: choosing tokens needs memory too
                for running in self._live:
                    running.fail(error)
                self._batch = self._new_batch()
            self._settle()

    def _admit(self) -> bool:
        """Let rows join that wait, as far as there is room; whether there is anything to do, once there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting or self._running)
            if self._stopped:
                return False
            count = min(self._batch.free, len(self._waiting))
            joining = [
                RunningRow(self._waiting.popleft(), self._spelling, self.metrics, self._stop_strings)
                for _ in range(count)
            ]
            self._running = [*self._running, *joining]
        for running in joining:
            self.metrics.queue_time.observe(time.perf_counter() - running.row.asked)
            try:
                self._batch.add(running.task)
            except Exception as error:
                running.fail(error)
        return True

    def _settle(self) -> None:
        """Log what failed, tell those whom it concerns, and forget the rows that are gone."""
        failed = [running for running in self._running if running.error is not None]
        for error in {running.error for running in failed}:  # the rows of a pass have one
            log.error("a step failed", exc_info=error)
        for running in failed:
            running.end("the model failed on this request; the server's log says why")
        with self._changed:
            self._running = self._live


def _ending() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=_RETRY_AFTER)
