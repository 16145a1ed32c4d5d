"""The key and value slots of one full-attention layer: allocated in steps, written and compacted in place."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin


@dataclass(slots=True)
class Occupancy:
    """How the slots are used, shared by all full-attention layers of a cache.

    Every row's tokens end at slot `length - 1`, as in a left-padded batch, so one slot range serves all rows.

    Attributes:
        length: slots in use.
        columns: tokens fed so far, padding and evicted ones included: the length that transformers sees.
        capacity: the most slots ever used (the budget), or None for no limit.
        placed: new tokens that the running forward pass was announced to bring; 0 between passes.
        skip: leading padding columns of the running forward pass that no row needs and no slot stores.
        arrangement: int64 [batch, slots afterwards], or None. Set when the running forward pass brings padding that
            does not lie in front: where each slot comes from, in (slots in use, new tokens).
    """

    length: int = 0
    columns: int = 0
    capacity: int | None = None
    placed: int = 0
    skip: int = 0
    arrangement: torch.Tensor | None = None


class BudgetLayer(CacheLayerMixin):
    """Slots `keys` and `values`, each [batch, KV heads, allocated slots, head size], of which `occupancy.length` are used."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, occupancy: Occupancy) -> None:
        super().__init__()
        self.occupancy = occupancy

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take shape, dtype and device from the first states; no slot is allocated yet."""
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens and return the keys and values that their queries attend to.

        Args:
            key_states: [batch, KV heads, new tokens, head size].
            value_states: likewise.
        """
        used = self.occupancy
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if used.arrangement is not None:
            return self._rearrange(key_states, value_states, used.arrangement)
        if used.length == 0:
            end = key_states.shape[2] - used.skip
            self._reserve(end)
            self.keys[:, :, :end] = key_states[:, :, used.skip :]
            self.values[:, :, :end] = value_states[:, :, used.skip :]
            return key_states, value_states
        end = used.length + key_states.shape[2]
        self._reserve(end)
        self.keys[:, :, used.length : end] = key_states
        self.values[:, :, used.length : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def compact(self, index: torch.Tensor, first: int) -> None:
        """Move the slots `index[..., first:]` to the slots from `first` on.

        Args:
            index: int64 [batch, KV heads or 1, slots afterwards], on this layer's device.
            first: slots before this one stay where they are.
        """
        width = index.shape[-1]
        if first < width:
            self.keys[:, :, first:width] = _take(self.keys, index[..., first:])
            self.values[:, :, first:width] = _take(self.values, index[..., first:])

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the allocated slots, used or not."""
        if not self.is_initialized:
            return 0
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()

    def get_seq_length(self) -> int:
        """Tokens fed so far, evicted ones included, so that positions stay logical."""
        return self.occupancy.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next `query_length` queries face, and the offset of the first: slots, not logical positions."""
        return self.occupancy.length + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no limit on the logical length."""
        return -1

    def _rearrange(
        self, key_states: torch.Tensor, value_states: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used, width = self.occupancy.length, index.shape[-1]
        keys = torch.cat([self.keys[:, :, :used], key_states], dim=2)
        values = torch.cat([self.values[:, :, :used], value_states], dim=2)
        self._reserve(width)
        index = index.to(keys.device).unsqueeze(1)
        self.keys[:, :, :width] = _take(keys, index)
        self.values[:, :, :width] = _take(values, index)
        return keys, values

    def _reserve(self, slots: int) -> None:
        allocated = self.keys.shape[2]
        if slots <= allocated:
            return
        grown = with_room(slots)
        if self.occupancy.capacity is not None:
            grown = min(grown, self.occupancy.capacity)
        used = self.occupancy.length
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((*old.shape[:2], grown, old.shape[3]))
            new[:, :, :used] = old[:, :, :used]
            setattr(self, name, new)


def with_room(slots: int) -> int:
    """How many slots to allocate when that many are needed, so that growing step by step copies little in all."""
    return slots + max(16, slots // 16)


def _take(slots: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gather whole slots: [batch, heads, slots, size] by [batch, heads or 1, kept] to [batch, heads, kept, size]."""
    batch, heads, count, size = slots.shape
    first_row = torch.arange(batch * heads, device=slots.device).view(batch, heads, 1) * count
    return slots.view(-1, size).index_select(0, (index + first_row).flatten()).view(batch, heads, -1, size)
