"""The layers of a cache: slots that are written and compacted in place, and windows that slide."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from dynts.cache.columns import rows_of
from dynts.cache.step import Contents, Step


@dataclass(slots=True)
class Occupancy:
    """How the slots are used, shared by all layers of a cache, which read it and write none of it but `torn`.

    Attributes:
        contents: what the slots hold. What lies in other slots, such as those that a failed pass has written, means
            nothing.
        capacity: the most slots ever used (the budget), or None for no limit.
        fixed_shape: whether a decode step returns all slots of the budget, used or not.
        step: the running forward pass; None between passes.
        torn: whether some layers have moved their slots and others not yet.
    """

    contents: Contents
    capacity: int | None = None
    fixed_shape: bool = False
    step: Step | None = None
    torn: bool = False

    @property
    def length(self) -> int:
        """Tokens of the fullest row."""
        return self.contents.length

    @property
    def columns(self) -> int:
        """Tokens fed so far, padding and evicted ones included: the length that transformers sees."""
        return self.contents.columns


class BudgetLayer(CacheLayerMixin):
    """A full-attention layer's slots, of which `occupancy.length` are used.

    Attributes:
        memory: keys and values, allocated for as many rows as there may be.
        keys: [batch, KV heads, allocated slots, head size], the first rows of the memory. On CPUs they are stored as
            they are shown, elsewhere slots before heads, as kernels that take the rows' lengths want them.
        values: likewise.
        offered: memory that somebody else has allocated, zeros, to be taken where it is of the right size.
    """

    is_sliding = False
    memory: tuple[torch.Tensor, torch.Tensor]
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, occupancy: Occupancy) -> None:
        super().__init__()
        self.occupancy = occupancy
        self.offered: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take shape, dtype and device from the first states; no slot is allocated yet. Arguments as in `update`."""
        self.memory = _no_slots(key_states), _no_slots(value_states)
        if self.offered is not None and all(map(_alike, self.offered, self.memory)):
            self.memory = self.offered
        self._show(len(key_states))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens and return the keys and values that their queries attend to.

        Args:
            key_states: [batch, KV heads, new tokens, head size].
            value_states: likewise.
            args: of transformers, unused.
            kwargs: likewise.
        """
        step = self.occupancy.step
        assert step is not None  # the cache has seen to it
        # anew after a first pass that failed and had other rows
        if not self.is_initialized or len(self.keys) != len(key_states):
            self.lazy_initialization(key_states, value_states)
        if step.arrangement is not None:
            return self._rearrange(key_states, value_states, step.arrangement)
        if step.slots is not None:
            return self._step(key_states, value_states, step.slots)
        start = self.occupancy.length
        end = start + key_states.shape[2]
        self._reserve(end)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def compact(self, index: torch.Tensor, first: int, rows: torch.Tensor | None) -> None:
        """Move slots together.

        Args:
            index: int64 [rows, KV heads or 1, slots], on this layer's device: where each slot from `first` on comes
                from.
            first: slots before this one stay where they are.
            rows: int64 [rows], on this layer's device: the rows that change; None for all.
        """
        for slots in (self.keys, self.values):
            moved = _take(slots, index, rows)
            self.occupancy.torn = True
            target = slots[:, :, first : first + index.shape[-1]]
            if rows is None:
                target.copy_(moved)
            else:
                target.index_copy_(0, rows, moved)

    def take_rows(self, rows: "Sequence[tuple[BudgetLayer, int, int] | None]", most: int) -> None:
        """Make the rows of these slots those of others.

        Args:
            rows: of each row whose slots it takes over, of which row, and how many; None for an empty row. A row of
                this layer stays or moves to a lower number.
            most: rows that there may ever be.
        """
        if not self.is_initialized:
            source = next(layer for layer, *_ in filter(None, rows))
            self.lazy_initialization(*(slots[:1].expand(most, -1, -1, -1) for slots in source.memory))
        self._reserve(max(length for _, _, length in filter(None, rows)))
        self.occupancy.torn = True
        for place, row in enumerate(rows):
            source, at, length = row or (self, place, 0)
            if row is not None and source is self and at == place:
                continue
            for own, other in zip(self.memory, source.memory, strict=True):
                own[place, :, :length] = other[at, :, :length]
                own[place, :, length:] = 0  # what a sequence that failed has left may be no number
        self._show(len(rows))

    def get_seq_length(self) -> int:
        """Return the tokens fed so far, evicted ones included, so that positions stay logical."""
        return self.occupancy.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the keys that the next queries face, and the offset of the first: slots, not logical positions."""
        return self.occupancy.length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit on the logical length."""
        return -1

    def _step(
        self, key_states: torch.Tensor, value_states: torch.Tensor, slots: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fixed = self.occupancy.fixed_shape
        if not fixed:
            self._reserve(self.occupancy.length + 1)
        rows, slot = (index.to(self.keys.device) for index in slots)
        # written so that torch.compile writes in place: with scatter_ it copies all slots, twice
        self.keys[rows, :, slot] = key_states[:, :, 0]
        self.values[rows, :, slot] = value_states[:, :, 0]
        # nothing here may depend on the length when the shape is fixed, or a compiled step would be compiled anew
        if fixed:
            return self.keys, self.values
        return self.keys[:, :, : self.occupancy.length + 1], self.values[:, :, : self.occupancy.length + 1]

    def _rearrange(
        self, key_states: torch.Tensor, value_states: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used, width = self.occupancy.length, index.shape[-1]
        keys, values = key_states, value_states
        if used:
            keys = torch.cat([self.keys[:, :, :used], key_states], dim=2)
            values = torch.cat([self.values[:, :, :used], value_states], dim=2)
        self._reserve(width)
        index = index.to(keys.device).unsqueeze(1)
        self.keys[:, :, :width] = _take(keys, index)
        self.values[:, :, :width] = _take(values, index)
        return keys, values

    def _show(self, rows: int) -> None:
        """Let the first rows of the memory be those of the batch."""
        self.keys, self.values = (slots if rows == len(slots) else slots[:rows] for slots in self.memory)

    def _reserve(self, slots: int) -> None:
        allocated = self.keys.shape[2]
        if slots <= allocated:
            return
        grown, capacity = with_room(slots), self.occupancy.capacity
        if capacity is not None:
            grown = capacity if self.occupancy.fixed_shape else min(grown, capacity)
        rows, used = self.occupancy.contents.batch, self.occupancy.length
        grown_memory = []
        for old in self.memory:
            # attention gives a dead slot no weight, but no weight times NaN is NaN
            # and slots that inference mode has made could not be written outside it
            with torch.inference_mode(False):
                new = _zeros(old, grown)
            new[:rows, :, :used] = old[:rows, :, :used]
            # a CUDA graph writes to this very memory; on CPUs static means that the contents never change
            if self.occupancy.fixed_shape and new.device.type != "cpu":
                torch._dynamo.mark_static_address(new)
            grown_memory.append(new)
        shown = len(self.keys)
        self.memory = grown_memory[0], grown_memory[1]
        self._show(shown)


class SlidingLayer(DynamicSlidingWindowLayer):
    """A sliding-window layer whose tokens count when the pass that brought them is committed.

    What the latest pass attended to stays whole until the next: its end may turn out to be that of a pass that failed.
    It takes no memory, for transformers' own layer holds a view of it, which keeps all of it.

    Steps of fixed shape see a ring instead: the token of a column lies in slot column modulo window, so a new token
    takes the place of the one that has just left the window, and no pass that fails costs a token that is still in it.

    Attributes:
        in_ring: whether keys and values are a ring of `sliding_window` slots.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, occupancy: Occupancy, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self.occupancy = occupancy
        self.in_ring = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take shape, dtype and device from the first states. Arguments as in `update`."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values, self.in_ring = _no_slots(key_states), _no_slots(value_states), False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new tokens and return what their queries attend to. Arguments as in `BudgetLayer`."""
        # anew after a first pass that failed and had other rows
        if not self.is_initialized or len(self.keys) != len(key_states):
            self.lazy_initialization(key_states, value_states)
        step = self.occupancy.step
        if step is not None and step.ring is not None:
            slot = step.ring.column.to(self.keys.device) % self.sliding_window
            self.keys.index_copy_(2, slot, key_states)
            self.values.index_copy_(2, slot, value_states)
            return self.keys, self.values
        held_keys, held_values = self._window()
        keys, values = torch.cat([held_keys, key_states], dim=2), torch.cat([held_values, value_states], dim=2)
        self.keys, self.values = keys, values
        self.cumulative_length = self.occupancy.columns + key_states.shape[2]
        return keys, values

    def enter_ring(self, memory: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        """Move to a ring, if the tokens do not lie in one yet.

        Args:
            memory: keys and values [batch, KV heads, sliding window, head size] to be used, of any contents; None
                allocates them.
        """
        if self.in_ring:
            return
        fed = self.occupancy.columns
        columns = torch.arange(max(0, fed - self.sliding_window), fed, device=self.keys.device)
        # what lies in the tensors ends with what a pass that failed has brought
        held = self.keys.shape[2] - (self.cumulative_length - fed)
        columns = columns[max(0, len(columns) - held) :]
        place, source = columns % self.sliding_window, slice(held - len(columns), held)
        old = self.keys, self.values
        if memory is None:
            with torch.inference_mode(False):
                memory = (_zeros(old[0], self.sliding_window), _zeros(old[1], self.sliding_window))
        for ring, tensor in zip(memory, old, strict=True):
            ring.zero_().index_copy_(2, place, tensor[:, :, source])
        self.keys, self.values = memory
        self.in_ring = True

    def take_rows(self, rows: "Sequence[tuple[SlidingLayer, int] | None]", columns: int) -> None:
        """Make the rows of this layer those of others.

        Args:
            rows: of each row whose it is, and its number there; None for an empty row.
            columns: fed to the fullest of them, which end together.
        """
        width = min(columns, self.sliding_window - 1)
        keys = rows_of(rows, lambda layer: layer._window()[0], width, dim=2)
        values = rows_of(rows, lambda layer: layer._window()[1], width, dim=2)
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.cumulative_length = keys, values, columns

    def _window(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the latest columns, one fewer than a window has."""
        self._leave_ring()
        end = self.keys.shape[2] - (self.cumulative_length - self.occupancy.columns)
        window = slice(max(0, end - self.sliding_window + 1), end)
        return self.keys[:, :, window], self.values[:, :, window]

    def _leave_ring(self) -> None:
        """Put the window's tokens in the order of their columns."""
        if not self.in_ring:
            return
        fed = self.occupancy.columns
        columns = torch.arange(max(0, fed - self.sliding_window + 1), fed, device=self.keys.device)
        place = columns % self.sliding_window
        self.keys, self.values = self.keys.index_select(2, place), self.values.index_select(2, place)
        self.in_ring, self.cumulative_length = False, fed

    def get_seq_length(self) -> int:
        """Return the tokens fed so far."""
        return self.occupancy.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the keys that the next queries face, and the column of the first."""
        held = min(self.occupancy.columns, self.sliding_window - 1)
        return held + query_length, self.occupancy.columns - held


def with_room(slots: int) -> int:
    """Return how many slots to allocate where so many are needed, so that growing step by step copies little in all."""
    return slots + max(16, slots // 16)


def _no_slots(states: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor of slots for states [batch, KV heads, new tokens, head size]."""
    return states.new_empty((*states.shape[:2], 0, states.shape[3]))


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of slots differ in nothing but their number of slots."""
    sizes = one.shape[:2] + one.shape[3:], other.shape[:2] + other.shape[3:]
    return sizes[0] == sizes[1] and one.dtype == other.dtype and one.device == other.device


def stores_slots_first(device: torch.device) -> bool:
    """Return whether slots are stored before heads on a device."""
    return device.type != "cpu"


def _zeros(like: torch.Tensor, slots: int) -> torch.Tensor:
    """Return that many slots of zeros for states [batch, KV heads, any, head size]."""
    batch, heads, _, size = like.shape
    if stores_slots_first(like.device):
        return like.new_zeros(batch, slots, heads, size).transpose(1, 2)
    return like.new_zeros(batch, heads, slots, size)


def _take(slots: torch.Tensor, index: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Return whole slots, [rows, heads, kept, size], by an index [rows, heads or 1, kept]; `rows` are all if None."""
    batch, heads, count, size = slots.shape
    if rows is None:
        rows = torch.arange(batch, device=slots.device)
    if not stores_slots_first(slots.device):
        starts = (rows.unsqueeze(1) * heads + torch.arange(heads, device=slots.device)).unsqueeze(2) * count
        flat = slots.reshape(-1, size)
        return flat.index_select(0, (index + starts).flatten()).view(len(rows), heads, -1, size)
    # all heads of a slot lie together: where they move alike, they move at once
    together = index.shape[1] == 1
    place = (index.transpose(1, 2) + rows.view(-1, 1, 1) * count) * (1 if together else heads)
    if not together:
        place = place + torch.arange(heads, device=slots.device)
    flat = slots.transpose(1, 2).reshape(-1, heads * size if together else size)
    return flat.index_select(0, place.flatten()).view(len(rows), -1, heads, size).transpose(1, 2)
