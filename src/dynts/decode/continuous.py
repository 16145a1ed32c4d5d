"""Rows that join and leave: one decode loop for sequences that begin and end at any time."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList

from dynts.cache.cache import BudgetCache
from dynts.cache.columns import upload
from dynts.cache.interface import CACHE
from dynts.cache.joining import CacheRow, take_rows
from dynts.cache.step import Turn
from dynts.config import Sampling
from dynts.decode.checkpoint import more_warpers, row_processors
from dynts.decode.compress import Session
from dynts.decode.prefixes import SharedPrefixes
from dynts.decode.sampling import RowSampling, draws_of
from dynts.models import input_device

PREFILL_TOKENS = 512
"""Tokens of prompts, padding included, that are read between two decode steps: so long running rows wait."""


@dataclass(frozen=True, slots=True)
class RowToken:
    """A row's next token.

    Attributes:
        token: its id.
        failed: whether the model's logits were not finite, and the token means nothing.
        cached: tokens that the row has in the cache, this one not among them.
        fed: tokens that it was fed so far.
    """

    token: int
    failed: bool
    cached: int
    fed: int


@dataclass(eq=False, slots=True)
class RowTask:
    """A sequence to generate.

    Args:
        prompt: token ids.
        sampling: how to draw tokens; the row is given up after `max_new_tokens` of them at the latest.
        tell: takes each token as it comes, and says whether the row has ended with it. What it raises ends the batch.
        fail: told of the error if a forward pass has failed, and the row with it.

    Attributes:
        cancelled: nobody waits for the sequence any more: its row is given up before the next step. Any thread may set
            it.
    """

    prompt: Sequence[int]
    sampling: Sampling
    tell: Callable[[RowToken], bool]
    fail: Callable[[Exception], object]
    cancelled: bool = field(default=False, init=False)


@dataclass(eq=False, slots=True)
class _Row:
    """A sequence under way."""

    task: RowTask
    draws: list[float]
    processors: LogitsProcessorList | None
    token: int = 0
    drawn: int = 0

    @property
    def gone(self) -> bool:
        return self.task.cancelled or self.drawn < 0

    def take(self, token: RowToken) -> None:
        """Take the next token, and tell of it."""
        self.token, self.drawn = token.token, self.drawn + 1
        if self.task.tell(token) or token.failed or self.drawn == len(self.draws):
            self.drawn = -1


@dataclass(eq=False, slots=True)
class _Reading:
    """Rows whose prompts are being read, together if each is short.

    Attributes:
        cache: of their own; None before the first piece.
        cut: tokens after which a copy of the cache is kept for other prompts; None if none is.
    """

    rows: list[_Row]
    cache: BudgetCache | None = None
    cut: int | None = None

    @property
    def width(self) -> int:
        """Columns of the prompts, padding included."""
        return max(len(row.task.prompt) for row in self.rows)


class ContinuousBatch:
    """Generates for rows that join as they come and leave when they end, at most so many at a time.

    A sequence gets the tokens that it would get alone. Its prompt is read in a cache of its own, in pieces between
    decode steps, and what it begins with like others is copied; then its row is taken over into the batch's cache. The
    rows of that cache are those in use, always the
    first ones: where a row leaves, a new one or the last one takes its place. Where decode steps have a fixed shape,
    recorded or compiled, there may be empty rows behind them.

    All methods are called from one thread, within the session's context.

    Args:
        session: an entered `compress` context.
        rows: the most at a time. Slots are allocated for as many.
        prefill_tokens: of prompts to read between two decode steps.
    """

    def __init__(self, session: Session, rows: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.session = session
        self.most = rows
        self.prefill_tokens = prefill_tokens
        self.model: Any = session.model
        self.device = input_device(session.model)
        self.cache: BudgetCache | None = None
        self._rows: list[_Row] = []
        self._arriving: deque[_Reading] = deque()
        self.prefixes = SharedPrefixes()
        self._sampling: tuple[list[_Row], RowSampling] | None = None
        self._processed = len(row_processors(session.model, [0], 1)) > 0
        takes_last = "logits_to_keep" in inspect.signature(type(session.model).forward).parameters
        self._last = {"logits_to_keep": 1} if takes_last else {}

    @property
    def free(self) -> int:
        """Rows that are not taken."""
        return self.most - sum(not row.gone for row in self._under_way())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return all(row.gone for row in self._under_way())

    def add(self, task: RowTask) -> None:
        """Let a sequence join. There has to be a free row.

        Raises:
            DyntsError: the budget has no room for its prompt.
        """
        assert self.free > 0
        if self.session.method.evicts:
            self.session.config.check_question(len(task.prompt))
        processors = None
        if self._processed:
            processors = row_processors(self.session.model, task.prompt, task.sampling.max_new_tokens)
        self._arriving.append(_Reading([_Row(task, draws_of(task.sampling), processors)]))

    @torch.no_grad()
    def step(self) -> None:
        """Read a piece of the prompts that wait, if any do; then take a decode step of all rows, and tell of it."""
        self._arriving = deque(reading for reading in self._arriving if not all(row.gone for row in reading.rows))
        ready = self._read() if self._arriving else []
        self._arrange(ready)
        if self.cache is not None:
            self._decode(self.cache)
        if self.idle:
            self._rows, self.cache = [], None
            self._arriving.clear()

    def _under_way(self) -> Iterator[_Row]:
        yield from self._rows
        for reading in self._arriving:
            yield from reading.rows

    def _read(self) -> list[tuple[CacheRow, _Row]]:
        """Read a piece of a prompt, or several short ones together, and return the rows that have come to an end."""
        reading = self._arriving.popleft()
        cache, rows, width = reading.cache or self._begin(reading), reading.rows, reading.width
        try:
            lengths = [len(row.task.prompt) for row in rows]
            start = cache.occupancy.columns
            end = min(width, start + max(1, self.prefill_tokens // len(rows)))
            if reading.cut is not None and start < reading.cut:
                end = min(end, reading.cut)
            cache.announced = Turn(0, width, tuple(lengths))
            # what pads is masked
            ids = [[row.task.prompt[0]] * (width - len(row.task.prompt)) + list(row.task.prompt) for row in rows]
            mask = None
            if min(lengths) < width:
                mask = upload([[0] * (width - length) + [1] * length for length in lengths], self.device)
            logits = self._forward(cache, upload([row[start:end] for row in ids], self.device), mask)
            cache.announced = None
            if end == reading.cut:
                self.prefixes.keep(rows[0].task.prompt[:end], self._copy(cache))
        except Exception as error:
            self._fail(rows, error)
            return []
        if end < width:
            self._arriving.append(reading)
            return []
        self._choose(rows, logits, cache)
        return [((cache, number), row) for number, row in enumerate(rows) if not row.gone]

    def _begin(self, reading: _Reading) -> BudgetCache:
        """Return the cache that prompts are read in, which may hold their beginning."""
        prompt = reading.rows[0].task.prompt
        known = self.prefixes.find(prompt)
        reading.cut = self.prefixes.cut(prompt)
        if known is None and reading.cut is None:
            self._join_others(reading)
        reading.cache = self.session.new_cache(decodes=False) if known is None else self._copy(known)
        return reading.cache

    def _copy(self, cache: BudgetCache) -> BudgetCache:
        """Return a cache of one row that goes on like another of one row."""
        copy = self.session.new_cache(decodes=False)
        take_rows(copy, [(cache, 0)], most=1)
        return copy

    def _join_others(self, reading: _Reading) -> None:
        """Let other prompts that nobody has begun to read join one, as far as a piece holds them all, with padding."""
        for other in list(self._arriving):
            width = max(reading.width, other.width)
            if other.cache is None and width * (len(reading.rows) + 1) <= self.prefill_tokens:
                reading.rows.extend(other.rows)
                self._arriving.remove(other)

    def _arrange(self, ready: list[tuple[CacheRow, _Row]]) -> None:
        """Give up the rows that are gone, and take over those that are ready."""
        if not ready and not any(row.gone for row in self._rows):
            return
        cache = self.cache
        places: list[tuple[CacheRow, _Row] | None] = []
        if cache is not None:
            places = [None if row.gone else ((cache, number), row) for number, row in enumerate(self._rows)]
        for new in ready:
            if None in places:
                places[places.index(None)] = new
            else:
                places.append(new)
        while None in places:
            last = places.pop()
            if last is not None:
                places[places.index(None)] = last
        taken = [place for place in places if place is not None]
        self._rows = [row for _, row in taken]
        if not taken:
            self.cache = None
            return
        if cache is None:
            cache = self.cache = self.session.new_cache()
            self.session.prepare(cache, self.most)
        empty = [None] * (self._width(cache, len(taken)) - len(taken))
        take_rows(cache, [*(source for source, _ in taken), *empty], self.most)

    def _width(self, cache: BudgetCache, rows: int) -> int:
        """Return how many rows a step has: those in use, or where its shape is fixed one of a few numbers."""
        if not cache.occupancy.fixed_shape:
            return rows
        return self.most if self.session.compile else min(self.most, 1 << (rows - 1).bit_length())

    def _decode(self, cache: BudgetCache) -> None:
        rows = self._rows
        try:
            tokens = [row.token for row in rows] + [0] * (cache.batch - len(rows))
            mask = None
            if cache.sliding_layers:
                shown = cache.history.positions() >= 0
                mask = torch.cat([shown, shown.new_ones(cache.batch, 1)], dim=1).long()
            logits = self._forward(cache, upload(tokens, self.device).unsqueeze(1), mask)
        except Exception as error:
            self._rows, self.cache = [], None
            self._fail(rows, error)
            return
        self._choose(rows, logits, cache)

    def _forward(self, cache: BudgetCache, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of the last tokens: float32 [rows, vocabulary], a copy.

        Args:
            cache: what the pass continues.
            ids: int64 [rows, tokens].
            mask: int64 [rows, columns], those fed before included; None where all are tokens.
        """
        arguments = {"input_ids": ids, "attention_mask": mask, "use_cache": True, CACHE: cache, **self._last}
        logits: torch.Tensor = self.model(**arguments).logits
        return logits[:, -1].to(self.device, torch.float32, copy=True)

    def _choose(self, rows: list[_Row], logits: torch.Tensor, cache: BudgetCache) -> None:
        """Choose the next token of each row, and tell of it."""
        scores = logits[: len(rows)]
        failed = ~scores.amax(dim=-1).isfinite()  # NaN if there is one
        scores.masked_fill_(failed[:, None], 0.0)
        contents = cache.occupancy.contents
        for number, row in enumerate(rows):
            if row.processors is not None:
                fed = cache.history.tokens()[number : number + 1, contents.columns - contents.next_positions[number] :]
                scores[number] = row.processors(fed, scores[number : number + 1])[0]  # type: ignore[arg-type]
        if self._sampling is None or self._sampling[0] != rows:
            warpers = more_warpers(self.session.model)
            self._sampling = rows, RowSampling([row.task.sampling for row in rows], self.device, warpers)
        chosen = self._sampling[1](scores, [row.draws[max(row.drawn, 0)] for row in rows])
        tokens, bad = torch.stack([chosen, failed.long()]).tolist()
        for number, row in enumerate(rows):
            if not row.task.cancelled:
                row.take(
                    RowToken(
                        tokens[number], bool(bad[number]), contents.lengths[number], contents.next_positions[number]
                    )
                )

    def _fail(self, rows: Sequence[_Row], error: Exception) -> None:
        for row in rows:
            row.drawn = -1
            row.task.fail(error)
