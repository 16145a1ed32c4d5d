"""What a method may look at when it scores the cached tokens: slots, and what is remembered of every token fed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from dynts.cache.columns import Columns, rows_of
from dynts.cache.step import Turn
from dynts.chat.scanner import ThinkScanner


class History:
    """Tables over columns, the running number of a token in its (padded) sequence.

    Args:
        scanner: finds where thinking ends; None treats all generated tokens as thinking.
    """

    def __init__(self, scanner: ThinkScanner | None) -> None:
        self.scanner = scanner
        self._tokens, self._positions, self._asked = Columns(), Columns(), Columns()

    def append(self, tokens: torch.Tensor, positions: torch.Tensor, asked: bool) -> None:
        """Add columns.

        Args:
            tokens: int64 [batch, columns], -1 where the token is unknown (input embeddings).
            positions: int64 [batch or 1, columns], the tokens' rotary positions, -1 for padding.
            asked: whether they are of a question or a user turn.
        """
        self._tokens = self._tokens.appended(tokens)
        self._positions = self._positions.appended(positions.expand_as(tokens))
        self._asked = self._asked.appended(tokens.new_full((), asked, dtype=torch.bool).expand_as(tokens))

    def truncate(self, columns: int) -> None:
        """Forget all columns but the first ones: a pass that failed had added some."""
        self._tokens, self._positions = self._tokens.first(columns), self._positions.first(columns)
        self._asked = self._asked.first(columns)

    def take_rows(self, rows: "Sequence[tuple[History, int] | None]", columns: int) -> None:
        """Make the rows of these tables those of others.

        Args:
            rows: of each row whose it is, and its number there; None for an empty row.
            columns: how many of the last ones to take over.
        """
        tokens = rows_of(rows, History.tokens, columns, fill=-1)
        positions = rows_of(rows, History.positions, columns, fill=-1)
        asked = rows_of(rows, History.asked, columns)
        self._tokens, self._positions, self._asked = map(Columns().appended, (tokens, positions, asked))

    def hide(self, shown: torch.Tensor) -> None:
        """Take tokens for padding from now on. shown: bool [batch, columns so far], False for those."""
        self._positions = Columns().appended(self.positions().masked_fill(~shown, -1))

    def tokens(self) -> torch.Tensor:
        """Return the token ids of all columns: int64 [batch, columns], -1 where unknown."""
        return self._tokens.values

    def positions(self) -> torch.Tensor:
        """Return the logical positions of all columns: int64 [batch, columns], -1 for padding."""
        return self._positions.values

    def asked(self) -> torch.Tensor:
        """Return which columns are of a question or a user turn: bool [batch, columns]."""
        return self._asked.values

    def answer(self, turns: Sequence[Turn], rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return which tokens come after the marker that ended the thinking of their turn: bool [rows, columns].

        Args:
            turns: all so far.
            rows: int64 [rows], those that are asked for; None for all.
        """
        tokens = self.tokens() if rows is None else self.tokens()[rows]
        answer = torch.zeros_like(tokens, dtype=torch.bool)
        if self.scanner is None:
            return answer
        ends = [turn.start for turn in turns[1:]] + [tokens.shape[1]]
        for turn, end in zip(turns, ends, strict=True):
            answer[:, turn.start : end] = self.scanner.after_thinking(tokens[:, turn.start : end])
        return answer


@dataclass(frozen=True)
class Slots:
    """The cached tokens at the moment of a compaction.

    Of a batch it shows the rows that evict, and calls them the batch. There is one set of tokens per group and head:
    with shared granularity one group and one head stand for the whole model, with native granularity there is a group
    per full-attention layer and a head per KV head.

    Attributes:
        columns: int64 [groups, batch, heads, slots], the column (see `History`) of the token in each slot, in ascending
            order. What it says of a slot that is not live means nothing.
        live: bool [batch, slots]; False at the end of a row with fewer tokens than the longest one.
        history: tables over the columns, of all rows.
        turns: the question and later user turns so far.
        all_keys: per full-attention layer, the cached keys of all rows, on the layer's device.
        all_values: likewise the cached values.
        rows: int64 [batch], which rows these are; None for all.
    """

    columns: torch.Tensor
    live: torch.Tensor
    history: History
    turns: tuple[Turn, ...]
    all_keys: list[torch.Tensor]
    all_values: list[torch.Tensor]
    rows: torch.Tensor | None = None

    def of_rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the rows that are shown, of a tensor whose first dimension is all rows."""
        return tensor if self.rows is None else tensor[self.rows.to(tensor.device)]

    def keys(self, layer: int) -> torch.Tensor:
        """Return the cached keys of a full-attention layer: [batch, KV heads, slots, head size]."""
        return self.of_rows(self.all_keys[layer])

    def values(self, layer: int) -> torch.Tensor:
        """Return the cached values of a full-attention layer: [batch, KV heads, slots, head size]."""
        return self.of_rows(self.all_values[layer])

    def lookup(self, table: torch.Tensor) -> torch.Tensor:
        """Return values of a table over columns, [all rows, columns], for each slot: [groups, batch, heads, slots]."""
        return self._gathered(self.of_rows(table))

    def lookup_native(self, table: torch.Tensor) -> torch.Tensor:
        """Return the same of a table that differs between groups and heads, [groups, all rows, heads, columns]."""
        shown = table if self.rows is None else table[:, self.rows.to(table.device)]
        return shown.gather(-1, self.columns)

    @cached_property
    def positions(self) -> torch.Tensor:
        """Logical positions: int64 [groups, batch, heads, slots]; -1 where no token lives."""
        return self.lookup(self.history.positions()).masked_fill(~self.live[:, None], -1)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Token ids: int64 [groups, batch, heads, slots]; -1 where unknown or no token lives."""
        return self.lookup(self.history.tokens()).masked_fill(~self.live[:, None], -1)

    @cached_property
    def question(self) -> torch.Tensor:
        """bool [groups, batch, heads, slots]: tokens of the question and of later user turns."""
        return self.lookup(self.history.asked()) & self.live[:, None]

    @cached_property
    def answer(self) -> torch.Tensor:
        """bool [groups, batch, heads, slots]: tokens after the end of their turn's thinking."""
        return self._gathered(self.history.answer(self.turns, self.rows)) & self.live[:, None]

    def _gathered(self, table: torch.Tensor) -> torch.Tensor:
        """Return values of a table over columns, [batch, columns], for each slot: [groups, batch, heads, slots]."""
        groups, batch, heads, _ = self.columns.shape
        return table[None, :, None].expand(groups, batch, heads, table.shape[-1]).gather(-1, self.columns)
