"""Tables that grow by a column a step, in memory allocated ahead, and small numbers on their way to a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A table [batch, columns, ...]. Tables that grew out of each other share their memory.

    A longer table is another object, and leaves the shorter one as it was: columns beyond a table's count mean nothing
    to it. So one goes back by taking up an older table, and appending then overwrites what was given up.

    Args:
        memory: [batch, allocated columns, ...]; None before the first column.
        count: columns in use.
    """

    memory: torch.Tensor | None = None
    count: int = 0

    @property
    def values(self) -> torch.Tensor:
        """The table, [batch, columns, ...], a view of the memory. There is one once columns have been appended."""
        assert self.memory is not None
        return self.memory[:, : self.count]

    def appended(self, new: torch.Tensor) -> Self:
        """Return the table with columns at its end.

        Args:
            new: [batch, new columns, ...]; copied.
        """
        memory, count = self.memory, self.count + new.shape[1]
        if memory is None or memory.shape[1] < count:
            memory = new.new_empty(new.shape[0], count + max(64, count // 4), *new.shape[2:])
            if self.count:
                memory[:, : self.count] = self.values
        memory[:, self.count : count] = new
        return type(self)(memory, count)

    def first(self, count: int) -> Self:
        """Return the table of the first columns."""
        return type(self)(self.memory, min(count, self.count))


def upload(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Return numbers of the host on a device; the host does not wait for them to arrive.

    Args:
        values: integers, nested as they are to be shaped.
        device: where they go.

    Returns:
        int64.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device, dtype=torch.int64)
    return torch.tensor(values, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)
