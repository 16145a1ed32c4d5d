"""Which token sits in which slot."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch

from dynts.cache.selection import live_slots


@dataclass(frozen=True, slots=True, eq=False)
class SlotColumns:
    """The column (see `History`) of the token in each slot.

    Every step adds one column to each row, so the columns of tokens that came after the latest move follow from the rows'
    lengths, and a step writes nothing.

    Args:
        groups: sets of tokens: 1, or a group per full-attention layer with native granularity.
        heads: likewise, 1 or the number of KV heads.
        known: the table at the latest move; None before the first.
        lengths: int64 [batch], cached tokens of each row at that time.
    """

    groups: int
    heads: int
    known: torch.Tensor | None = None
    lengths: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def table(self, lengths: torch.Tensor, slots: int, fed: int) -> torch.Tensor:
        """int64 [groups, batch, heads, slots].

        Args:
            lengths: int64 [batch], cached tokens of each row.
            slots: slots in use.
            fed: columns fed so far. The table says some column below that for slots that hold no token.
        """
        slot = torch.arange(slots, device=lengths.device)
        later = self.spread((slot + (fed - lengths).unsqueeze(1)).clamp(max=max(fed - 1, 0)))
        if self.known is None:
            return later
        known = torch.nn.functional.pad(self.known, (0, slots - self.known.shape[-1]))
        return torch.where(live_slots(self.lengths, slots)[:, None], known, later)

    def moved(self, columns: torch.Tensor, lengths: torch.Tensor) -> Self:
        """After slots have moved. columns: as `table` gives it; lengths: int64 [batch], afterwards."""
        return replace(self, known=columns, lengths=lengths)

    def spread(self, columns: torch.Tensor) -> torch.Tensor:
        """[batch, n] as a view [groups, batch, heads, n]."""
        return columns[None, :, None].expand(self.groups, columns.shape[0], self.heads, -1)
