"""Prompts on their way into a batch: read in pieces, several short ones at a time, what they share once."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dynts.cache.cache import BudgetCache
from dynts.cache.columns import upload
from dynts.cache.joining import take_rows
from dynts.cache.step import Turn
from dynts.decode.compress import Session
from dynts.decode.prefixes import SharedPrefixes
from dynts.decode.tasks import LiveRow
from dynts.models import input_device

Forward = Callable[[BudgetCache, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Feeds a cache with token ids [rows, tokens] and a mask; returns the logits of the last ones [rows, vocabulary]."""


class ReadPrompts(NamedTuple):
    """Prompts that have been read: their rows, those of their own cache, and the logits of their last tokens."""

    rows: list[LiveRow]
    cache: BudgetCache
    logits: torch.Tensor


@dataclass(eq=False, slots=True)
class _Reading:
    """Rows whose prompts are being read together.

    Attributes:
        cache: of their own; None before the first piece.
        cut: tokens after which a copy of the cache is kept for other prompts; None if none is.
    """

    rows: list[LiveRow]
    cache: BudgetCache | None = None
    cut: int | None = None

    @property
    def width(self) -> int:
        """Columns of the prompts, padding included."""
        return max(len(row.task.prompt) for row in self.rows)


class PromptReader:
    """Reads prompts in caches of their own, a piece of one at a time, in turns.

    Args:
        session: an entered `compress` context.
        at_once: tokens of a piece, padding included.
        forward: runs the model.
    """

    def __init__(self, session: Session, at_once: int, forward: Forward) -> None:
        self.session = session
        self.at_once = at_once
        self.prefixes = SharedPrefixes()
        self._forward = forward
        self._device = input_device(session.model)
        self._waiting: deque[_Reading] = deque()

    @property
    def rows(self) -> list[LiveRow]:
        """Those whose prompts are not read yet, and somebody waits for."""
        return [row for reading in self._waiting for row in reading.rows if not row.gone]

    def add(self, row: LiveRow) -> None:
        """Take a row whose prompt is to be read."""
        self._waiting.append(_Reading([row]))

    def read(self) -> ReadPrompts | None:
        """Read a piece, and return the prompts that have come to an end; None if none have. Rows may fail."""
        self._waiting = deque(reading for reading in self._waiting if not all(row.gone for row in reading.rows))
        if not self._waiting:
            return None
        reading = self._next()
        try:
            cache = reading.cache = reading.cache or self._begin(reading)
            logits = self._read_piece(reading, cache)
        except Exception as error:
            for row in reading.rows:
                row.fail(error)
            return None
        if cache.occupancy.columns == reading.width:
            return ReadPrompts(reading.rows, cache, logits)
        self._waiting.append(reading)
        return None

    def _next(self) -> _Reading:
        """Take the one whose turn it is. While a prompt is being read, others that are the same wait for their copy."""
        begun = [reading.rows[0].task.prompt for reading in self._waiting if reading.cache is not None]
        found = next(each for each in self._waiting if each.cache is not None or each.rows[0].task.prompt not in begun)
        self._waiting.remove(found)
        return found

    def _begin(self, reading: _Reading) -> BudgetCache:
        """Return the cache to read in, which may hold the prompt's beginning; let other prompts join where none does.

        Those join that nobody has begun to read, as far as a piece holds them all.
        """
        prompt = reading.rows[0].task.prompt
        known = self.prefixes.find(prompt)
        reading.cut = self.prefixes.cut(prompt)
        if known is not None:
            return self._copy(known)
        for other in [] if reading.cut is not None else list(self._waiting):
            width = max(reading.width, other.width)
            if other.cache is None and width * (len(reading.rows) + 1) <= self.at_once:
                reading.rows.extend(other.rows)
                self._waiting.remove(other)
        return self.session.new_cache(decodes=False)

    def _read_piece(self, reading: _Reading, cache: BudgetCache) -> torch.Tensor:
        """Feed a piece, and return the logits of the last tokens."""
        prompts, width = [row.task.prompt for row in reading.rows], reading.width
        start = cache.occupancy.columns
        end = min(width, start + (1 if start and cache.one_at_a_time else max(1, self.at_once // len(prompts))))
        if reading.cut is not None and start < reading.cut:
            end = min(end, reading.cut)
        lengths = [len(prompt) for prompt in prompts]
        # what pads is masked
        ids = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = None
        if min(lengths) < width:  # then the piece holds all
            mask = upload([[0] * (width - length) + [1] * length for length in lengths], self._device)
        cache.announced = Turn(0, width, tuple(lengths))
        logits = self._forward(cache, upload([row[start:end] for row in ids], self._device), mask)
        cache.announced = None
        if end == reading.cut:
            self.prefixes.keep(prompts[0][:end], self._copy(cache))
        return logits

    def _copy(self, cache: BudgetCache) -> BudgetCache:
        """Return a cache of one row that goes on like another of one row."""
        copy = self.session.new_cache(decodes=False)
        take_rows(copy, [(cache, 0)], most=1)
        return copy
