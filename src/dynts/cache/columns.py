"""Tables that grow by a column a step, in memory allocated ahead; rows of several tables; numbers on their way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch

T = TypeVar("T")


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


def rows_of(
    rows: Sequence[tuple[T, int] | None],
    table_of: Callable[[T], torch.Tensor],
    width: int | None = None,
    *,
    dim: int = 1,
    at_end: bool = True,
    fill: float = 0,
) -> torch.Tensor:
    """Return a table of rows of others, which may have other widths.

    Args:
        rows: of each row what has it, and its number there; None for an empty row. At least one is none.
        table_of: gives the table of what has rows, [batch, ...]; called once for each.
        width: of the result; None for the widest table's.
        dim: which dimension that is.
        at_end: whether rows end together (columns), or begin together (slots). What is too much is cut off at the
            other end, and what is missing there is filled.
        fill: the filling, and what an empty row holds.
    """
    tables = {id(source): table_of(source) for source in {id(row[0]): row[0] for row in rows if row}.values()}
    if width is None:
        width = max(table.shape[dim] for table in tables.values())
    first = next(iter(tables.values()))
    shape = [len(rows), *first.shape[1:]]
    shape[dim] = width
    found = first.new_full(shape, fill)
    row = 0
    while row < len(rows):
        begins, end = rows[row], row + 1
        if begins is not None:
            source, at = begins
            while end < len(rows) and (there := rows[end]) and there[0] is source and there[1] == at + end - row:
                end += 1
            table = tables[id(source)]
            taken = min(width, table.shape[dim])
            place, origin = (width - taken, table.shape[dim] - taken) if at_end else (0, 0)
            found[row:end].narrow(dim, place, taken).copy_(table[at : at + end - row].narrow(dim, origin, taken))
        row = end
    return found


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return numbers of the host on a device; the host does not wait for them to arrive.

    Args:
        values: nested as they are to be shaped.
        device: where they go.
        dtype: of the result.
    """
    if device.type != "cuda":
        return torch.tensor(values, device=device, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
