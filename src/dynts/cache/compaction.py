"""A compaction: the method scores, the keep rule chooses, and the slots of all layers move together."""

from dataclasses import replace

import torch

from dynts.cache.columns import upload
from dynts.cache.layer import BudgetLayer, Occupancy
from dynts.cache.method import Method
from dynts.cache.selection import left_align, needed, survivors
from dynts.cache.slots import History, Slots
from dynts.cache.step import Contents
from dynts.config import CompressionConfig


class Compactor:
    """Evicts from the slots of a cache, and alone writes down what they hold.

    Args:
        occupancy: what the slots hold.
        layers: the full-attention layers, whose slots these are.
        method: scores the tokens, and follows them.
        schedule: how many of a row's latest tokens stay anyway, and what score others need; None never evicts.
        history: of the cache.
    """

    def __init__(
        self,
        occupancy: Occupancy,
        layers: list[BudgetLayer],
        method: Method,
        schedule: CompressionConfig | None,
        history: History,
    ) -> None:
        self.occupancy = occupancy
        self.layers = layers
        self.method = method
        self.schedule = schedule
        self.history = history

    def slots(self, contents: Contents, chosen: list[int] | None = None) -> Slots:
        """Return the cached tokens of some rows.

        Args:
            contents: what the slots hold.
            chosen: the rows, ascending; None for all.
        """
        rows = None
        if chosen is not None and len(chosen) < contents.batch:
            rows = upload(chosen, contents.device)
        keys = [layer.keys[:, :, : contents.length] for layer in self.layers]
        values = [layer.values[:, :, : contents.length] for layer in self.layers]
        columns, live = contents.slot_columns(), contents.live()
        if rows is not None:
            columns, live = columns[:, rows], live[rows]
        return Slots(columns, live, self.history, contents.turns, keys, values, rows)

    def compact(self, contents: Contents, keep: dict[int, int], questions: tuple[int, ...]) -> None:
        """Evict.

        Args:
            contents: what the slots hold, a pass that is being committed included.
            keep: the rows that evict, and how many tokens each keeps, at most if there is a threshold.
            questions: question tokens of each row, those of a coming turn included.
        """
        schedule = self.schedule
        assert schedule is not None
        slots = self.slots(contents, list(keep))
        scores = self.method.score(slots).expand(slots.columns.shape)
        lengths, most = slots.of_rows(contents.next_slots), upload(list(keep.values()), contents.device)
        ranks = {
            "question": slots.question if self.method.protect_question else None,
            "answer": slots.answer if self.method.protect_answer else None,
        }
        if schedule.threshold is not None:
            most = needed(scores, lengths, most, schedule.local_window, schedule.threshold, **ranks)
            if self.method.granularity == "native" and self.method.heads_group is not None:
                # other processes have the other heads, and all hold as many tokens
                torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=self.method.heads_group)
            keep = dict(zip(keep, most.tolist(), strict=True))
        kept = survivors(scores, lengths, most, schedule.local_window, **ranks)
        due = {row: schedule.next_compaction(left, questions[row]) for row, left in keep.items()}
        self.keep(contents, slots, kept, keep, due)

    def keep(
        self,
        contents: Contents,
        slots: Slots,
        kept: torch.Tensor,
        lengths: dict[int, int],
        due: dict[int, int] | None = None,
    ) -> None:
        """Move the kept slots of some rows together.

        Args:
            contents: what the slots hold.
            slots: of those rows.
            kept: bool, shaped as `slots.columns`.
            lengths: how many slots each of the rows keeps, in the order of `slots`.
            due: when rows are compacted next, of those where that changes.
        """
        rows, index = slots.rows, left_align(kept, max(lengths.values()))
        columns = slots.columns.gather(-1, index)
        if rows is not None:
            everything = contents.slot_columns().clone()
            everything[:, rows, :, : columns.shape[-1]] = columns
            columns = everything
        left = replace(
            contents,
            lengths=tuple(lengths.get(row, length) for row, length in enumerate(contents.lengths)),
            due=tuple((due or {}).get(row, before) for row, before in enumerate(contents.due)),
            counted=None,
        )
        left = left.with_table(columns[..., : left.length])
        self.method.compact(index, rows, contents.length, slots.of_rows(left.live())[:, : index.shape[-1]])
        self.write(left, index, rows)

    def write(self, contents: Contents, index: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> None:
        """Make these the contents of the slots, once they have moved. All that can fail otherwise is done by now.

        Args:
            contents: afterwards; the method's memory is added.
            index: int64 [groups, rows, heads, slots afterwards], where each slot comes from; None if none moves.
            rows: int64 [rows], those that move; None for all.
        """
        contents = replace(contents, memory=self.method.memory())
        if index is not None:
            self._move(index, rows)
        self.occupancy.contents, self.occupancy.step, self.occupancy.torn = contents, None, False

    def _move(self, index: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Move slots, from the first one that changes. Arguments as in `write`."""
        width = index.shape[-1]
        moved = (index != torch.arange(width, device=index.device)).flatten(0, -2).any(dim=0)
        first = int(torch.where(moved.any(), moved.to(torch.uint8).argmax(), width))
        if first == width:
            return
        on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for group, layer in enumerate(self.layers):
            device = layer.keys.device
            if device not in on_device:
                on_device[device] = index[..., first:].to(device), None if rows is None else rows.to(device)
            there, own_rows = on_device[device]
            layer.compact(there[group if len(there) > 1 else 0], first, own_rows)
