"""H2O: heavy hitters, the tokens that received most attention so far (arXiv 2306.14048)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from dynts.cache.columns import rows_of
from dynts.cache.method import Attending, Method, Observed, Surroundings
from dynts.cache.selection import live_slots
from dynts.cache.slots import Slots
from dynts.methods.attention import AttentionMethod
from dynts.models.attention import attention_weights

ENTRIES_AT_ONCE = 1 << 24
"""Attention weights held at once, per layer: 64 MiB in float32."""


@dataclass
class H2O(AttentionMethod):
    """Attention received, summed over all decode steps, per KV head (mean over its query heads).

    Each step's row is computed from that step's query. An evicted token's sum goes with it. Reading a question or a
    user turn adds nothing.
    """

    name: ClassVar[str] = "h2o"

    def begin(self, surroundings: Surroundings) -> None:
        """Start the sums, [batch, KV heads, slots] per layer: those of later slots are zero."""
        self.sums: list[torch.Tensor | None] = [None] * len(surroundings.layers)

    def observe_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, how: Attending
    ) -> torch.Tensor | None:
        """Return the attention that the keys receive, [batch, KV heads, slots], None of a question.

        Arguments as in `Method`.
        """
        if not how.generated:
            return None
        batch, _, slots, _ = key.shape
        first = slots - query.shape[2]
        at_once = max(1, ENTRIES_AT_ONCE // (batch * query.shape[1] * slots))
        total = None
        for rows in query.split(at_once, dim=2):
            visible = None if how.live is None else how.live[:, None, None, None]
            if query.shape[2] > 1:
                seen = live_slots(first + 1 + torch.arange(rows.shape[2], device=key.device), slots)
                visible = seen if visible is None else seen & visible
            received = attention_weights(rows, key, how.softmax, visible).mean(dim=2).sum(dim=2)
            total = received if total is None else total + received
            first += rows.shape[2]
        return total

    def remember_attention(self, seen: Sequence[Observed]) -> None:
        """Add what was received to the sums. Argument as in `Method`."""
        for layer, received in enumerate(observed.told for observed in seen):
            if received is not None:
                before = self.sums[layer]
                self.sums[layer] = received if before is None else received + _fitted(before, received.shape[-1])

    def take_rows(self, rows: Sequence[tuple[Method, int] | None], columns: int) -> None:
        """Take over the sums. Arguments as in `Method`."""
        sums: list[torch.Tensor | None] = []
        for layer in range(len(self.layers)):
            known = [None if row is None else (cast(H2O, row[0]).sums[layer], row[1]) for row in rows]
            own = [None if row is None or row[0] is None else (row[0], row[1]) for row in known]
            sums.append(rows_of(own, lambda table: table, dim=2, at_end=False) if any(own) else None)
        self.sums = sums

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the sums."""

        def score_layer(layer: int) -> torch.Tensor:
            sums, (batch, heads, used, _) = self.sums[layer], slots.all_keys[layer].shape
            if sums is None:
                sums = torch.zeros(batch, heads, used, device=slots.all_keys[layer].device)
            return slots.of_rows(_fitted(sums, used))

        return self.combine(score_layer, slots.columns.device)

    def compact(self, index: torch.Tensor, rows: torch.Tensor | None, before: int, live: torch.Tensor) -> None:
        """Keep the sums of the kept slots, and start the freed ones from zero. Arguments as in `Method`."""
        for layer, sums in enumerate(self.sums):
            if sums is None:
                continue
            sums = _fitted(sums, before)
            own = sums if rows is None else sums[rows.to(sums.device)]
            kept = index[layer if index.shape[0] > 1 else 0].to(sums.device).expand(-1, sums.shape[1], -1)
            moved = own.gather(-1, kept) * live.to(sums.device)[:, None]
            if rows is not None:
                moved = sums.index_copy(0, rows.to(sums.device), _fitted(moved, before))
            self.sums[layer] = moved


def _fitted(sums: torch.Tensor, slots: int) -> torch.Tensor:
    """Return sums of that many slots: of others there are none but zeros."""
    return torch.nn.functional.pad(sums, (0, slots - sums.shape[-1]))
