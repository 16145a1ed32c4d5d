"""Rows that come and go: a cache's rows become those of others, each with all that belongs to its sequence."""

from collections.abc import Sequence

import torch

from dynts.cache.cache import BudgetCache, bookkeeping
from dynts.cache.columns import rows_of
from dynts.cache.step import NEVER, Contents, SlotColumns, Turn
from dynts.errors import UnsupportedError

CacheRow = tuple[BudgetCache, int]
"""A row of a cache."""


@bookkeeping()
def take_rows(cache: BudgetCache, rows: Sequence[CacheRow | None], most: int) -> None:
    """Make the rows of a cache those of others: slots, history, and what the method remembers.

    A sequence goes on in its new row as it would have done alone. Columns are counted anew, from the first token of the
    sequence that was fed most: rows end together, as those of a padded batch do.

    Args:
        cache: that changes. What it held in rows that are not named is gone.
        rows: of each row which one it takes over, from this cache or others of the same session; None for an empty
            row, which holds no token and gets none with generated ones. At least one is none. A row of this cache stays
            where it is or moves to a lower number.
        most: rows that there may ever be: memory is allocated for as many.

    Raises:
        UnsupportedError: a row has had several turns.
    """
    contents = [None if row is None else (row[0].occupancy.contents, row[1]) for row in rows]
    for held, _ in filter(None, contents):
        if len(held.turns) > 1:
            raise UnsupportedError("rows that have had several turns cannot be taken over: take rows after their first")
    after = _contents(cache, contents)
    cache.history.take_rows([row and (row[0].history, row[1]) for row in rows], after.columns)
    cache.method.take_rows([row and (row[0].method, row[1]) for row in rows], after.columns)
    for number, layer in enumerate(cache.budget_layers):
        layer.take_rows([row and (row[0].budget_layers[number], row[1], row[0].lengths[row[1]]) for row in rows], most)
    for number, window in enumerate(cache.sliding_layers):
        window.take_rows([row and (row[0].sliding_layers[number], row[1]) for row in rows], after.columns)
    for number, state in enumerate(cache.state_layers):
        state.take_state([row and (row[0].state_layers[number], row[1]) for row in rows])
    cache.compactor.write(after)


def _contents(cache: BudgetCache, rows: Sequence[tuple[Contents, int] | None]) -> Contents:
    """Return the contents that these rows make together."""
    counts = [(0, 0, NEVER, 0) if row is None else _counts(*row) for row in rows]
    lengths, fed, due, questions = (tuple(column) for column in zip(*counts, strict=True))
    columns, known = max(fed), cache.occupancy.contents

    def slot_columns(held: Contents) -> torch.Tensor:
        return (held.slot_columns() + (columns - held.columns)).clamp(min=0).transpose(0, 1)

    table = rows_of(rows, slot_columns, max(lengths), dim=3, at_end=False)
    empty = SlotColumns(known.table.groups, known.table.heads)
    turn = Turn(0, columns, questions)
    return Contents(known.device, empty, lengths, fed, due, columns, (turn,)).with_table(table.transpose(0, 1))


def _counts(contents: Contents, row: int) -> tuple[int, int, int, int]:
    """Return a row's cached tokens, all that it was fed, when it is compacted, and the tokens of its question."""
    return contents.lengths[row], contents.next_positions[row], contents.due[row], contents.questions[row]
