"""Serve mode: a stream of requests against one batch of this process, rows joining and leaving or all at once."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from dynts.bench.engines import TimedDynTS
from dynts.bench.stream import Arrival, Reception
from dynts.config import Sampling
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.sampling import NOT_FINITE
from dynts.decode.tasks import RowTask, RowToken

Batching = Literal["continuous", "static"]
BATCHINGS: tuple[Batching, ...] = ("continuous", "static")


@dataclass(frozen=True, slots=True)
class Served:
    """A stream that has been served.

    Attributes:
        engine: what served it.
        batching: how; None where nothing is known of it.
        budget: most cached tokens of a row; None where nothing is evicted, or nothing is known.
        rows: at a time; None where nothing is known.
        receptions: what became of the requests, in the order in which they came.
        dead_rows: share of the rows of all decode steps that held no unfinished sequence; None where nothing is known.
        remark: what else is to be known of it.
    """

    engine: str
    batching: Batching | None
    budget: int | None
    rows: int | None
    receptions: list[Reception]
    dead_rows: float | None = None
    remark: str | None = None


def serve_stream(
    engine: TimedDynTS,
    stream: Sequence[Arrival],
    batching: Batching,
    rows: int,
    prefill_tokens: int,
    done: Callable[[], None] = lambda: None,
) -> Served:
    """Serve a stream within this process, each request for as many tokens as it asks for, whatever they are.

    Args:
        engine: what generates.
        stream: the requests.
        batching: "continuous" lets a request join when a row is free; "static" takes what has come when the last batch
            has ended, and keeps all of its rows until the longest one ends.
        rows: the most at a time.
        prefill_tokens: of prompts to read between two steps.
        done: called after each request.

    Raises:
        DyntsError: the budget has no room for a prompt.
    """
    with engine.running():
        assert engine.session is not None
        batch = ContinuousBatch(engine.session, rows, prefill_tokens)
        # of every number of rows some steps, which are recorded or compiled at the first one
        warming = [Arrival(0.0, min(asked.prompt for asked in stream), rows + number, number) for number in range(rows)]
        _Serving(batch, warming, "continuous").run()
        serving = _Serving(batch, stream, batching, done)
        serving.run()
    dead = 1 - serving.unfinished / serving.stepped if serving.stepped else 0.0
    return Served(engine.name, batching, engine.budget, rows, serving.receptions, dead)


class _Serving:
    """One stream under way.

    Attributes:
        receptions: what became of the requests.
        stepped: rows of all decode steps.
        unfinished: those of them that held an unfinished sequence.
    """

    def __init__(
        self,
        batch: ContinuousBatch,
        stream: Sequence[Arrival],
        batching: Batching,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self.batch = batch
        self.static = batching == "static"
        self.receptions = [Reception(asked) for asked in stream]
        self.stepped = self.unfinished = 0
        self._ids = range(batch.session.model.config.vocab_size)
        self._done = done
        self._width = 0  # rows of the latest decode step
        self._tasks: list[RowTask] = []  # those of a static batch
        self._open = 0  # requests that have a row and wait for tokens
        self._started = time.perf_counter()

    @property
    def now(self) -> float:
        """Seconds since the stream began."""
        return time.perf_counter() - self._started

    def run(self) -> None:
        """Serve all requests."""
        coming = deque(self.receptions)
        while coming or not self.batch.idle:
            joining: list[Reception] = []
            if self.batch.idle or not self.static:
                while coming and coming[0].asked.at <= self.now and len(joining) < self.batch.free:
                    joining.append(coming.popleft())
            self._join(joining)
            if self.batch.idle:
                time.sleep(max(0.0, coming[0].asked.at - self.now))
                continue
            self._width = 0
            self.batch.step()
            self.stepped += self._width

    def _join(self, joining: Sequence[Reception]) -> None:
        longest = max((reception.asked.generated for reception in joining), default=0)
        for reception in joining:
            asked = reception.asked
            sampling = Sampling(longest if self.static else asked.generated, seed=asked.seed)
            task = RowTask(
                asked.prompt_ids(self._ids),
                sampling,
                partial(self._tell, reception),
                partial(self._fail, reception),
            )
            self.batch.add(task)
            if self.static:
                self._tasks.append(task)
        self._open += len(joining)

    def _tell(self, reception: Reception, token: RowToken) -> bool:
        """Count a token; whether its row is given up."""
        if token.fed > reception.asked.prompt and self.batch.cache is not None:  # of a decode step
            self._width = self.batch.cache.batch
        waits = reception.tokens < reception.asked.generated
        if waits and token.failed:
            self._fail(reception, NOT_FINITE)
        elif waits:
            self.unfinished += reception.tokens > 0  # a first token comes from the prompt
            reception.take(self.now)
            if reception.tokens == reception.asked.generated:
                self._end()
        return not self.static and reception.tokens == reception.asked.generated

    def _fail(self, reception: Reception, error: object) -> None:
        if reception.tokens < reception.asked.generated:
            reception.fail(str(error) or type(error).__name__)
            self._end()

    def _end(self) -> None:
        """Count a request that waits no more; with the last one of a static batch, all of its rows are given up."""
        self._open -= 1
        self._done()
        if not self._open:
            for task in self._tasks:
                task.cancelled = True
            self._tasks.clear()
