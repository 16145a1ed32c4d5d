"""Rows that join and leave: one decode loop for sequences that begin and end at any time."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch

from dynts.cache.cache import BudgetCache
from dynts.cache.columns import upload
from dynts.cache.interface import CACHE
from dynts.cache.joining import CacheRow, take_rows
from dynts.config import PREFILL_TOKENS
from dynts.decode.checkpoint import more_warpers
from dynts.decode.compress import Session
from dynts.decode.reading import PromptReader
from dynts.decode.sampling import RowSampling
from dynts.decode.tasks import LiveRow, RowTask, RowToken
from dynts.errors import DyntsError
from dynts.models import input_device

_Place = tuple[CacheRow, LiveRow]
"""A row, and where its tokens are."""


class ContinuousBatch:
    """Generates for rows that join as they come and leave when they end, at most so many at a time.

    A sequence gets the tokens that it would get alone. Its prompt is read in a cache of its own, in pieces between
    decode steps; then its row is taken over into the batch's cache. The rows of that cache are those in use, always the
    first ones: where a row leaves, a new one or the last one takes its place. Where decode steps have a fixed shape,
    recorded or compiled, there may be empty rows behind them.

    All methods are called from one thread, within the session's context.

    Args:
        session: an entered `compress` context.
        rows: the most at a time. Slots are allocated for as many.
        prefill_tokens: of prompts to read between two decode steps.

    Attributes:
        cache: the batch's; None while it has no rows.
    """

    def __init__(self, session: Session, rows: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.session = session
        self.most = rows
        self.cache: BudgetCache | None = None
        self.reader = PromptReader(session, prefill_tokens, lambda *given: self._forward(*given))
        self._device = input_device(session.model)
        self._rows: list[LiveRow] = []
        self._told: BudgetCache | None = None
        self._sampling: tuple[list[LiveRow], RowSampling] | None = None
        takes_last = "logits_to_keep" in inspect.signature(type(session.model).forward).parameters
        self._last = {"logits_to_keep": 1} if takes_last else {}

    @property
    def live(self) -> list[LiveRow]:
        """Rows that decode, and somebody waits for."""
        return [row for row in self._rows if not row.gone]

    @property
    def free(self) -> int:
        """Rows that are not taken."""
        return self.most - len(self.live) - len(self.reader.rows)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.free == self.most

    @property
    def bytes_per_row(self) -> int:
        """Bytes of keys and values allocated for each of the rows that are being told of their tokens."""
        return 0 if self._told is None else self._told.bytes_per_row

    def add(self, task: RowTask) -> None:
        """Let a sequence join. There has to be a free row.

        Raises:
            DyntsError: the prompt is empty, has a token that does not exist, or the budget has no room for it.
        """
        assert self.free > 0
        self._check_tokens(task.prompt)
        if self.session.method.evicts:
            self.session.config.check_question(len(task.prompt))
        self.reader.add(LiveRow.of(task, self.session.model))

    def _check_tokens(self, prompt: Sequence[int]) -> None:
        """Refuse what a pass would fail on, and all prompts with it that are read by the same pass."""
        known = len(cast(Any, self.session.model.get_input_embeddings()).weight)
        if len(prompt) == 0:
            raise DyntsError("the prompt is empty: a sequence needs a token to begin with")
        wrong = next((token for token in (min(prompt), max(prompt)) if not 0 <= token < known), None)
        if wrong is not None:
            raise DyntsError(f"the prompt has token id {wrong}: the model knows ids from 0 to {known - 1}")

    @torch.no_grad()
    def step(self) -> None:
        """Read a piece of the prompts that wait, if any do; then take a decode step of all rows, and tell of it."""
        ready = self._read()
        rows = [*self._rows, *(row for _, row in ready)]
        try:
            cache = self._arrange(ready)
            logits = None if cache is None else self._decode(cache)
        except Exception as error:
            self._rows, self.cache = [], None
            for row in rows:
                if not row.gone:
                    row.fail(error)
            return
        if cache is not None and logits is not None:
            self._choose(self._rows, logits, cache)
        if not self.live:
            self._rows, self.cache, self._told = [], None, None

    def _read(self) -> list[_Place]:
        """Read a piece of a prompt, or of several, and return the rows that can join, their first tokens told."""
        done = self.reader.read()
        if done is None:
            return []
        self._choose(done.rows, done.logits, done.cache)
        return [((done.cache, number), row) for number, row in enumerate(done.rows) if not row.gone]

    def _arrange(self, ready: Sequence[_Place]) -> BudgetCache | None:
        """Give up the rows that are gone, take over those that are ready, and return the cache; None without rows."""
        if self.cache is not None and not ready and not any(row.gone for row in self._rows):
            return self.cache
        places: list[_Place | None] = []
        if self.cache is not None:
            places = [None if row.gone else ((self.cache, number), row) for number, row in enumerate(self._rows)]
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
        if not taken:
            self._rows, self.cache = [], None
            return None
        if self.cache is None:
            self.cache = self.session.new_cache()
            self.session.prepare(self.cache, self.most)
        empty = [None] * (self._width(self.cache, len(taken)) - len(taken))
        take_rows(self.cache, [*(source for source, _ in taken), *empty], self.most)
        self.cache.measure()  # of a cache that rows come to and leave as long as a server runs, nobody adds up
        self._rows = [row for _, row in taken]
        return self.cache

    def _width(self, cache: BudgetCache, rows: int) -> int:
        """Return how many rows a step has: those in use, or where its shape is fixed one of a few numbers."""
        if not cache.occupancy.fixed_shape:
            return rows
        return self.most if self.session.compile else min(self.most, 1 << (rows - 1).bit_length())

    def _decode(self, cache: BudgetCache) -> torch.Tensor:
        """Feed the latest token of each row, and return the logits of the next ones, those of empty rows last."""
        tokens = [row.token for row in self._rows] + [0] * (cache.batch - len(self._rows))
        mask = None
        if cache.sliding_layers:
            shown = cache.history.positions() >= 0
            mask = torch.cat([shown, shown.new_ones(cache.batch, 1)], dim=1).long()
        return self._forward(cache, upload(tokens, self._device).unsqueeze(1), mask)

    def _forward(self, cache: BudgetCache, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the logits of the last tokens: float32 [rows, vocabulary], a copy.

        Args:
            cache: what the pass continues.
            ids: int64 [rows, tokens].
            mask: int64 [rows, columns], those fed before included; None where all are tokens.
        """
        model: Any = self.session.model
        logits: torch.Tensor = model(
            input_ids=ids, attention_mask=mask, use_cache=True, **{CACHE: cache}, **self._last
        ).logits
        return logits[:, -1].to(self._device, torch.float32, copy=True)

    def _choose(self, rows: list[LiveRow], logits: torch.Tensor, cache: BudgetCache) -> None:
        """Choose the next token of each row, and tell of it.

        Args:
            rows: the first ones of the cache.
            logits: float32 [rows of the cache, vocabulary]; they change.
            cache: after the pass that gave the logits.
        """
        scores, contents = logits[: len(rows)], cache.occupancy.contents
        failed = ~scores.amax(dim=-1).isfinite()  # NaN if there is one
        scores.masked_fill_(failed[:, None], 0.0)
        for number, row in enumerate(rows):
            if row.processors:
                own = cache.history.tokens()[number : number + 1, contents.columns - contents.next_positions[number] :]
                scores[number] = row.processors(own, scores[number : number + 1])[0]  # type: ignore[arg-type]
        if self._sampling is None or self._sampling[0] != rows:
            warpers = more_warpers(self.session.model)
            self._sampling = rows, RowSampling([row.task.sampling for row in rows], self._device, warpers)
        chosen = self._sampling[1](scores, [row.draws[row.drawn] for row in rows])
        told = torch.stack([chosen, failed.long()]).tolist()
        self._told = cache
        counts = zip(contents.lengths, contents.next_positions, strict=True)
        for row, token, bad, (cached, fed) in zip(rows, *told, counts, strict=False):  # empty rows come last
            if not row.task.cancelled:
                row.take(RowToken(token, bool(bad), cached, fed))
