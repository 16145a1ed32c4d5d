"""What a cache holds between two forward passes, and what is planned for the next: values that are never changed."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import torch

from dynts.cache.columns import upload
from dynts.cache.selection import live_slots


@dataclass(frozen=True, slots=True, eq=False)
class SlotColumns:
    """The column (see `History`) of the token in each slot.

    Every step adds one column to each row, so the columns of tokens that came after the latest move follow from the
    rows' lengths, and a step writes nothing.

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
        """Return the column of the token in each slot: int64 [groups, batch, heads, slots].

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
        """Return the table after slots have moved.

        Args:
            columns: as `table` gives it.
            lengths: int64 [batch], cached tokens of each row, afterwards.
        """
        return replace(self, known=columns, lengths=lengths)

    def spread(self, columns: torch.Tensor) -> torch.Tensor:
        """Return columns [batch, n] as a view [groups, batch, heads, n]."""
        return columns[None, :, None].expand(self.groups, columns.shape[0], self.heads, -1)


Kind = Literal["turn", "generated", "forced"]
"""Tokens of a question or user turn; a generated token of each row; several of a finished text, as if generated."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question or a later user turn.

    Attributes:
        start: its first column.
        end: the column after its last.
        tokens: of each row, padding excluded.
    """

    start: int
    end: int
    tokens: tuple[int, ...]


NEVER = sys.maxsize
"""More tokens than there are."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What a cache holds after a finished forward pass; `BudgetCache.commit` and compactions replace it by another.

    Attributes:
        device: of the bookkeeping.
        table: which token sits in which slot.
        lengths: cached tokens of each row, which fill its slots from the first one on; none before the first pass.
        next_positions: logical position of each row's next token.
        due: at how many cached tokens each row is compacted next; `NEVER` without a budget, and of an empty row.
        columns: tokens fed so far, padding and evicted ones included: the length that transformers sees.
        turns: questions and user turns, as far as they were fed.
        memory: what the method remembers, see `Method.memory`.
        counted: `lengths` and `next_positions` on the device, int64 [2, batch], if they are known there.
    """

    device: torch.device
    table: SlotColumns
    lengths: tuple[int, ...] = ()
    next_positions: tuple[int, ...] = ()
    due: tuple[int, ...] = ()
    columns: int = 0
    turns: tuple[Turn, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)
    counted: torch.Tensor | None = None

    def started(self, rows: int) -> Self:
        """Return the same; with empty rows before the first pass."""
        if self.lengths:
            return self
        return replace(self, lengths=(0,) * rows, next_positions=(0,) * rows, due=(NEVER,) * rows)

    @property
    def batch(self) -> int:
        """Rows, 0 before the first pass."""
        return len(self.lengths)

    @cached_property
    def length(self) -> int:
        """Tokens of the fullest row."""
        return max(self.lengths, default=0)

    @cached_property
    def ragged(self) -> bool:
        """Whether some row holds fewer tokens than another."""
        return any(length != self.length for length in self.lengths)

    @cached_property
    def full(self) -> list[int]:
        """The rows that are due."""
        return [row for row, (length, due) in enumerate(zip(self.lengths, self.due, strict=True)) if length >= due]

    @cached_property
    def questions(self) -> tuple[int, ...]:
        """Question tokens that each row was fed, all turns together."""
        return tuple(sum(tokens) for tokens in zip(*(turn.tokens for turn in self.turns), strict=True))

    @property
    def turn_end(self) -> int:
        """Column after the latest question or user turn."""
        return self.turns[-1].end if self.turns else 0

    def turn(self, tokens: int, coming: tuple[int, ...]) -> Turn:
        """Return the turn that the next columns belong to, with them: the latest if nothing has been generated since.

        Args:
            tokens: how many columns.
            coming: tokens of each row among them.
        """
        start = self.columns
        if self.turns and self.turns[-1].end == start:
            start, coming = self.turns[-1].start, tuple(map(sum, zip(self.turns[-1].tokens, coming, strict=True)))
        return Turn(start, self.columns + tokens, coming)

    def after(self, step: "Step") -> Self:
        """Return what a cache holds once a pass has come, evictions aside."""
        held, turns = self.started(len(step.coming)), self.turns
        if step.turn is not None:  # it has come, or come further
            turns = (*(turn for turn in turns if turn.start < step.turn.start), step.turn)
        left = replace(
            held,
            lengths=added(held.lengths, step.coming),
            next_positions=added(held.next_positions, step.coming),
            columns=held.columns + step.tokens,
            turns=turns,
            counted=held.counts_after(step),
        )
        if step.arrangement is None:
            return left
        arrived = torch.arange(held.columns, left.columns, device=self.device).expand(left.batch, -1)
        columns = torch.cat([held.slot_columns(), held.table.spread(arrived)], dim=-1)
        return left.with_table(columns.gather(-1, step.arrangement[None, :, None].expand(*columns.shape[:3], -1)))

    def with_table(self, columns: torch.Tensor) -> Self:
        """Return the same after slots have moved.

        Args:
            columns: of their tokens, int64 [groups, batch, heads, slots in use].
        """
        return replace(self, table=self.table.moved(columns, self.next_slots), counted=self.counts)

    @property
    def known_counts(self) -> torch.Tensor | None:
        """`counts`, if somebody has needed them since they last changed by more than a token a row."""
        return self.counted if self.counted is not None else vars(self).get("counts")

    def counts_after(self, step: "Step") -> torch.Tensor | None:
        """Return `counts` after a pass if they can be known without asking the host; None otherwise."""
        counts = self.known_counts
        if counts is None or step.kind != "generated":
            return None
        return counts + 1 if all(step.coming) else counts + self.occupied.long()

    @property
    def occupied(self) -> torch.Tensor:
        """bool [batch]: which rows hold a sequence. An empty row has no token, and gets none with generated ones."""
        return self.next_slots > 0

    @cached_property
    def counts(self) -> torch.Tensor:
        """int64 [2, batch]: tokens of each row, and the logical position of its next one."""
        if self.counted is not None:
            return self.counted
        # gradients may flow through the slots that this chooses, in a pass after those in inference mode
        with torch.inference_mode(False):
            return upload((self.lengths, self.next_positions), self.device)

    @property
    def next_slots(self) -> torch.Tensor:
        """int64 [batch]: the slot of each row's next token, which is the number of its tokens."""
        return self.counts[0]

    def live(self) -> torch.Tensor:
        """Return which slots hold a token: bool [batch, slots in use]."""
        return live_slots(self.next_slots, self.length)

    def slot_columns(self) -> torch.Tensor:
        """Return the column of the token in each slot: int64 [groups, batch, heads, slots in use]."""
        return self.table.table(self.next_slots, self.length, self.columns)


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """What a generated token faces in sliding-window layers whose slots are a ring, column modulo window.

    Attributes:
        column: int64 [1], that of the token.
        shown: bool [batch, window], which slots hold a token, the new one included.
    """

    column: torch.Tensor
    shown: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One forward pass, as `BudgetCache.plan` has it, for layers and masks to read.

    Attributes:
        kind: what arrives.
        tokens: columns that arrive, padding included.
        coming: tokens of each row among them.
        length: tokens of the fullest row afterwards.
        positions: int64 [batch or 1, tokens].
        turn: with kind "turn", the question or user turn as far as it is fed afterwards.
        live: bool [batch, keys that the queries face], False where there is no token; None if all are tokens. A
            generated token faces the slots as they are afterwards, all others face the slots in use and then the new
            tokens.
        slots: pair of int64 [batch], or None. Set when a token is generated and rows differ in length, or the shape is
            fixed: the rows, and the slot that each row's token goes to.
        arrangement: int64 [batch, slots afterwards], or None. Set when several columns arrive and rows differ in length
            or there is padding: where each slot comes from, in (slots in use, new tokens).
        ring: of a generated token, for sliding-window layers that keep a ring; None where they keep none.
    """

    kind: Kind
    tokens: int
    coming: tuple[int, ...]
    length: int
    positions: torch.Tensor
    turn: Turn | None = None
    live: torch.Tensor | None = None
    slots: tuple[torch.Tensor, torch.Tensor] | None = None
    arrangement: torch.Tensor | None = None
    ring: Ring | None = None


def added(before: Iterable[int], new: Iterable[int]) -> tuple[int, ...]:
    """Return counts of each row, added up.

    Args:
        before: of each row.
        new: of each row.
    """
    return tuple(old + more for old, more in zip(before, new, strict=True))
