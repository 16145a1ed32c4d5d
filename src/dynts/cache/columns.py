"""Which token sits in which slot."""

import torch

from dynts.cache.selection import live_slots


class SlotColumns:
    """The column (see `History`) of the token in each slot.

    Every step adds one column to each row, so the columns of tokens that came after the latest move follow from the rows'
    lengths, and a step writes nothing.

    Args:
        groups: sets of tokens: 1, or a group per full-attention layer with native granularity.
        heads: likewise, 1 or the number of KV heads.
    """

    def __init__(self, groups: int, heads: int) -> None:
        self.groups = groups
        self.heads = heads
        self._moved: torch.Tensor | None = None
        self._lengths = torch.empty(0)

    def table(self, lengths: torch.Tensor, slots: int, fed: int) -> torch.Tensor:
        """int64 [groups, batch, heads, slots].

        Args:
            lengths: int64 [batch], cached tokens of each row.
            slots: slots in use.
            fed: columns fed so far. The table says some column below that for slots that hold no token.
        """
        slot = torch.arange(slots, device=lengths.device)
        later = self.spread((slot + (fed - lengths).unsqueeze(1)).clamp(max=max(fed - 1, 0)))
        if self._moved is None:
            return later
        moved = torch.nn.functional.pad(self._moved, (0, slots - self._moved.shape[-1]))
        return torch.where(live_slots(self._lengths, slots)[:, None], moved, later)

    def move(self, columns: torch.Tensor, lengths: torch.Tensor) -> None:
        """Take over a table after slots have moved. columns: as `table` gives it; lengths: int64 [batch], afterwards."""
        self._moved, self._lengths = columns, lengths

    def spread(self, columns: torch.Tensor) -> torch.Tensor:
        """[batch, n] as a view [groups, batch, heads, n]."""
        return columns[None, :, None].expand(self.groups, columns.shape[0], self.heads, -1)
