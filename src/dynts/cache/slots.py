"""What a method may look at when it scores the cached tokens."""

from dataclasses import dataclass
from functools import cached_property

import torch

from dynts.cache.history import History


@dataclass(frozen=True)
class Slots:
    """The cached tokens at the moment of a compaction.

    There is one set of tokens per group and head: with shared granularity one group and one head stand for the whole
    model, with native granularity there is a group per full-attention layer and a head per KV head.

    Attributes:
        columns: int64 [groups, batch, heads, slots], the column (see `History`) of the token in each slot, in ascending
            order. What it says of a slot that is not live means nothing.
        live: bool [batch, slots]; False at the end of a row with fewer tokens than the longest one.
        history: tables over the columns.
        keys: per full-attention layer, the cached keys [batch, KV heads, slots, head size] on the layer's device.
    """

    columns: torch.Tensor
    live: torch.Tensor
    history: History
    keys: list[torch.Tensor]

    def lookup(self, table: torch.Tensor) -> torch.Tensor:
        """Values of a table over columns, [batch, columns], for each slot: [groups, batch, heads, slots]."""
        groups, batch, heads, _ = self.columns.shape
        spread = table[None, :, None].expand(groups, batch, heads, table.shape[-1])
        return spread.gather(-1, self.columns)

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
        return self.history.question(self.columns) & self.live[:, None]

    @cached_property
    def answer(self) -> torch.Tensor:
        """bool [groups, batch, heads, slots]: tokens after the end of their turn's thinking."""
        return self.lookup(self.history.answer()) & self.live[:, None]
