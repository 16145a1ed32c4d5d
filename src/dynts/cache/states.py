"""Layers that keep a state of fixed size: linear attention, convolutions, Mamba; alone or beside attention."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer

from dynts.cache.columns import rows_of
from dynts.cache.layer import BudgetLayer, Occupancy, SlidingLayer

_TENSORS = ("conv_states", "recurrent_states")
_STATE = (
    *_TENSORS,
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)
"""What transformers' layer holds: dictionaries, which have an entry for each of its states."""

_State = dict[str, dict[int, Any]]


class StateLayer(LinearAttentionLayer):
    """A layer whose state counts when the pass that changed it is committed.

    Models change states in place, so a pass works on copies: `begin` makes them. What the pass began with stays until
    `settle`, and is the state again if no column has come since.
    """

    is_compileable = False  # or generate() would make masks for slots of one fixed shape
    is_croppable = False

    def __init__(self, occupancy: Occupancy, number_of_states: int) -> None:
        super().__init__(number_of_states)
        self.occupancy = occupancy
        self._before: tuple[int, _State] | None = None

    @property
    def is_filled(self) -> bool:
        """Whether a pass, which may not count yet, has brought a state."""
        return any(self.is_conv_states_initialized.values()) or any(self.is_recurrent_states_initialized.values())

    def begin(self) -> None:
        """Let the coming pass change copies of what counts."""
        self._before = self.occupancy.columns, self._state()
        for name, entries in self._before[1].items():
            copied = {at: value.clone() if isinstance(value, torch.Tensor) else value for at, value in entries.items()}
            setattr(self, name, copied)

    def settle(self) -> None:
        """Free what the latest pass began with, or its copies if it has failed."""
        for name, entries in self._state().items():
            setattr(self, name, entries)
        self._before = None

    def tensors(self) -> list[torch.Tensor]:
        """Return the states that count, those of convolutions first."""
        state = self._state()
        return [value for name in _TENSORS for value in state[name].values() if value is not None]

    def take_state(self, rows: "Sequence[tuple[StateLayer, int] | None]") -> None:
        """Make the rows of this state those of others.

        Args:
            rows: of each row whose it is, and its number there; None for an empty row.
        """
        first = next(layer for layer, _ in filter(None, rows))._state()
        taken = {name: dict(entries) for name, entries in first.items()}
        for name in _TENSORS:
            for at, value in first[name].items():
                if value is not None:
                    width = value.shape[1]
                    taken[name][at] = rows_of(rows, lambda layer, n=name, i=at: layer._state()[n][i], width)  # type: ignore[misc]
        for name, entries in taken.items():
            setattr(self, name, entries)
        self._before = None

    def _state(self) -> _State:
        """Return what counts: what lies here, unless it is that of a pass that has failed."""
        if self._before is not None and self._before[0] == self.occupancy.columns:
            return self._before[1]
        return {name: getattr(self, name) for name in _STATE}


class BudgetStateLayer(StateLayer, BudgetLayer):
    """A layer with both full attention and a state."""

    is_croppable = False

    def __init__(self, occupancy: Occupancy, number_of_states: int) -> None:
        BudgetLayer.__init__(self, occupancy)
        StateLayer.__init__(self, occupancy, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Take shape, dtype and device from the first states: of attention by position, of others by name."""
        (BudgetLayer if args else StateLayer).lazy_initialization(self, *args, **kwargs)


class SlidingStateLayer(StateLayer, SlidingLayer):
    """A layer with both sliding-window attention and a state."""

    is_croppable = False
    device: Any

    def __init__(self, occupancy: Occupancy, sliding_window: int, number_of_states: int) -> None:
        SlidingLayer.__init__(self, occupancy, sliding_window)
        StateLayer.__init__(self, occupancy, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Take shape, dtype and device from the first states: of attention by position, of others by name."""
        (SlidingLayer if args else StateLayer).lazy_initialization(self, *args, **kwargs)
