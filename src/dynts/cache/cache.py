"""A KV cache with a budget: it knows which token sits in which slot, and compacts itself when the budget is reached."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

from dynts.cache.architecture import full_attention_layers
from dynts.cache.columns import SlotColumns
from dynts.cache.event import CompactionEvent
from dynts.cache.fixed_rows import FixedRowsCache
from dynts.cache.history import History
from dynts.cache.layer import BudgetLayer, Occupancy
from dynts.cache.selection import left_align, live_slots, survivors
from dynts.cache.slots import Slots
from dynts.config import CompressionConfig
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods.base import Method


class BudgetCache(FixedRowsCache):
    """Cache of one conversation (batch): full-attention layers share a budget, sliding-window layers stay as they are.

    Rows are compacted on their own schedule: a row's tokens, budget and evictions are what they would be without the
    rest of the batch. Every row's tokens fill its slots from the first one on.

    Args:
        model_config: configuration of the decoder.
        method: a started method (`Method.start`), which belongs to this cache alone.
        schedule: the budget and what a compaction keeps; None never evicts.
        history: an empty history.
        device: where the inputs are, and the bookkeeping; each layer's slots live on the layer's own device.
        record: whether to report the surviving positions of every compaction.
        fixed_shape: whether decode steps see all slots of the budget, used or not, so that no shape ever changes.

    Attributes:
        full_layers: group of each full-attention layer, by the layer's index.
        listener: called after every compaction, if set.
        lengths: cached tokens of each row.
        questions: question tokens that each row was fed, all turns together.
        next_positions: logical position of each row's next token.
        turn_end: column after the latest question or user turn.
        announced_end: column at which the question of the running generate() call will end, however it is chunked.
        announced_tokens: tokens of that question in each row, if known beforehand.
        forced: whether all that follows the first question counts as generated, however many tokens come at a time: a
            finished text that is read as it was written (`dynts.evaluate.replay`).
        peak_length: most slots in use since `measure_peaks`.
    """

    def __init__(
        self,
        model_config: PreTrainedConfig,
        method: Method,
        schedule: CompressionConfig | None,
        history: History,
        device: torch.device,
        record: bool = False,
        fixed_shape: bool = False,
    ) -> None:
        self.occupancy = Occupancy(capacity=schedule.budget if schedule else None, fixed_shape=fixed_shape)
        layers: list[Any] = DynamicCache(config=model_config).layers
        self.full_layers = {layer: group for group, layer in enumerate(full_attention_layers(model_config))}
        self.budget_layers = [BudgetLayer(self.occupancy) for _ in self.full_layers]
        for index, layer in zip(self.full_layers, self.budget_layers, strict=True):
            layers[index] = layer
        super().__init__(layers=layers)
        self.method = method
        self.schedule = schedule
        self.history = history
        self.record = record
        self.listener: Callable[[CompactionEvent], None] | None = None
        self.device = device
        self.lengths: list[int] = []
        self.questions: list[int] = []
        self.next_positions: list[int] = []
        self.turn_end = 0
        self.announced_end = 0
        self.announced_tokens: list[int] | None = None
        self.forced = False
        self.peak_length = 0
        self._prompt_bytes = 0
        self.native = method.granularity == "native"
        per_head = (len(self.budget_layers), method.kv_heads) if self.native else (1, 1)
        self._columns = SlotColumns(*per_head)
        self._next_slots: torch.Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows, 0 before the first forward pass."""
        return len(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether some row holds fewer tokens than another."""
        return any(length != self.occupancy.length for length in self.lengths)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all allocated key and value tensors, sliding-window layers included."""
        sliding = (layer for layer in self.layers if isinstance(layer, DynamicSlidingWindowLayer))
        tensors = [tensor for layer in sliding for tensor in (layer.keys, layer.values) if tensor is not None]
        held = sum(tensor.untyped_storage().nbytes() for tensor in tensors)  # a view keeps all of its storage
        return held + sum(layer.allocated_bytes for layer in self.budget_layers)

    def measure_peaks(self) -> None:
        """Start measuring `peak_length` and `peak_bytes` anew."""
        self.peak_length, self._prompt_bytes = self.occupancy.length, self.allocated_bytes

    @property
    def peak_bytes(self) -> int:
        """Most bytes allocated since `measure_peaks`."""
        return max(self._prompt_bytes, self.allocated_bytes)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values, [batch, KV heads, new tokens, head size], and return those to attend to.

        Raises:
            DyntsError: nobody announced these tokens, as a dynts context does for every forward pass.
        """
        if self.occupancy.placed != key_states.shape[2]:
            raise DyntsError(
                "this cache evicts tokens, and works only within a dynts.compress context of the model that filled it: "
                "enter one, or start without this cache"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where queries stand for causal masks: at the next slot, or at the next column for sliding-window layers."""
        sliding = isinstance(self.layers[layer_idx], DynamicSlidingWindowLayer)
        return self.get_seq_length(layer_idx) if sliding else self.occupancy.length

    def live(self) -> torch.Tensor:
        """bool [batch, slots in use]: slots that hold a token."""
        return live_slots(self.next_slots(), self.occupancy.length)

    def next_slots(self) -> torch.Tensor:
        """int64 [batch]: the slot of each row's next token, which is the number of its tokens."""
        if self._next_slots is None:
            self._next_slots = torch.tensor(self.lengths, device=self.device)
        return self._next_slots

    def drop_padding(self, attention_mask: torch.Tensor) -> None:
        """Forget cached tokens that the attention mask of a new turn hides (rows that had ended before others).

        Args:
            attention_mask: bool [batch, columns fed so far].

        Raises:
            UnsupportedError: heads of one row would be left with different numbers of tokens.
        """
        shown = attention_mask.sum(dim=1).tolist()
        if shown == self.next_positions:
            return
        if self.native and self.method.heads_group is not None:
            # what follows depends on the heads, and processes that came to different results would wait for each other
            raise UnsupportedError(
                "the attention mask hides cached tokens, and with native granularity no process knows all heads: continue rows "
                "that ended at different times one by one, or use shared granularity"
            )
        slots = self._slots()
        kept = slots.lookup(attention_mask) & slots.live[:, None]
        counts = kept.sum(dim=-1)
        if not bool((counts == counts[:1, :, :1]).all()):
            raise UnsupportedError(
                "the attention mask hides tokens that some heads have evicted and others not (native granularity): "
                "continue rows that ended at different times one by one"
            )
        self._keep(slots, kept, dict(enumerate(counts[0, :, 0].tolist())))
        self.next_positions = shown

    def check_rows(self, rows: int) -> None:
        """Refuse a number of rows other than that of the first forward pass.

        Raises:
            DyntsError: names both.
        """
        if self.batch not in (0, rows):
            raise DyntsError(f"the cache holds {self.batch} rows but the input has {rows}: use a new cache")

    @property
    def room(self) -> int | None:
        """How many more tokens of each row lead to the next compaction; None without a budget."""
        return None if self.schedule is None else self.schedule.budget - self.occupancy.length

    def check_room(self, tokens: int) -> None:
        """Refuse generated tokens beyond the next compaction: those after it must not see what it evicts.

        Raises:
            DyntsError: names how many can be fed.
        """
        if self.room is not None and tokens > self.room:
            raise DyntsError(
                f"{tokens} generated tokens at a time lead beyond the next compaction: feed at most {self.room}"
            )

    def check_turn(self, new_tokens: list[int]) -> list[int]:
        """Question tokens of each row, those of a coming turn included.

        Raises:
            DyntsError: the budget is too small for them, or the cache holds another number of rows.
        """
        self.check_rows(len(new_tokens))
        before = self.questions or [0] * len(new_tokens)
        questions = [old + new for old, new in zip(before, new_tokens, strict=True)]
        if self.schedule is not None:
            self.schedule.check_question(max(questions))
        return questions

    def start_turn(self, new_tokens: list[int], columns: int) -> None:
        """Protect the coming tokens as a question, and make room for them.

        Args:
            new_tokens: tokens of each row's question or user turn, padding excluded.
            columns: columns of the turn, padding included.

        Raises:
            DyntsError: the budget is too small for the questions so far.
        """
        start = self.occupancy.columns
        questions = self.check_turn(new_tokens)
        if not self.lengths:
            self.lengths, self.next_positions = [0] * len(new_tokens), [0] * len(new_tokens)
        self.questions = questions
        self.turn_end = start + columns
        if self.schedule is not None:
            rows = [length + new > self.schedule.budget for length, new in zip(self.lengths, new_tokens, strict=True)]
            if any(rows):
                self._compact(rows, coming=new_tokens)
        turns = self.history.turns
        if turns and turns[-1][1] == start:  # a question fed in several chunks
            start = turns.pop()[0]
        turns.append((start, self.turn_end))

    def place(self, new_live: torch.Tensor | None, tokens: int) -> None:
        """Decide where the tokens of a forward pass go. If rows differ or there is padding, the queries face (slots in use,
        new tokens), and the slots are put in order afterwards.

        Args:
            new_live: bool [batch, tokens], False for padding; None when there is none.
            tokens: columns of the forward pass.
        """
        used = self.occupancy
        used.placed, used.slots, used.arrangement = tokens, None, None
        live = torch.ones(self.batch, tokens, dtype=torch.bool, device=self.device) if new_live is None else new_live
        self._coming = [tokens] * self.batch if new_live is None else live.sum(dim=1).tolist()
        self._width = max(old + new for old, new in zip(self.lengths, self._coming, strict=True))
        if self.ragged or min(self._coming) < tokens:
            used.arrangement = left_align(torch.cat([self.live(), live], dim=1), self._width)

    def place_step(self) -> None:
        """The same for a decode step, one token of each row: its query faces the slots as they are afterwards."""
        used = self.occupancy
        used.placed, used.arrangement = 1, None
        used.slots = None
        if self.ragged or used.fixed_shape:
            used.slots = torch.arange(self.batch, device=self.device), self.next_slots()
        self._coming, self._width = [1] * self.batch, used.length + 1

    def commit(self, tokens: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor) -> None:
        """Take note of a finished forward pass, and compact if the budget is reached.

        Args:
            tokens: int64 [batch, new tokens], -1 where unknown.
            positions: int64 [batch or 1, new tokens].
            hidden: [batch, new tokens, hidden size], the decoder's last hidden state.
        """
        used = self.occupancy
        arrangement, start = used.arrangement, used.columns
        arriving = tokens.shape[1]
        before = used.length + arriving
        if arrangement is not None:
            arrived = torch.arange(start, start + arriving, device=self.device).expand(self.batch, -1)
            columns = torch.cat([self._slot_columns(), self._columns.spread(arrived)], dim=-1)
            columns = columns.gather(-1, arrangement[None, :, None].expand(*columns.shape[:3], -1))
        used.placed, used.slots, used.arrangement = 0, None, None
        used.length = self._width
        used.columns += arriving
        if arriving == 1 and arrangement is None and self._next_slots is not None:
            self._next_slots = self._next_slots + 1
        else:
            self._next_slots = None
        self.lengths = [old + new for old, new in zip(self.lengths, self._coming, strict=True)]
        self.next_positions = [old + new for old, new in zip(self.next_positions, self._coming, strict=True)]
        if arrangement is not None:
            self._columns.move(columns, self.next_slots())
            self.method.compact(arrangement[None, :, None], None, before, self.live())
        self.history.append(tokens, positions)
        self.method.observe_hidden(hidden, generated=start >= self.turn_end)
        self.peak_length = max(self.peak_length, used.length)
        if tokens.shape[1] > 1:  # sliding-window layers hold a whole prompt for a moment; all others only grow
            self._prompt_bytes = self.peak_bytes
        if self.schedule is not None and used.length >= self.schedule.budget:
            self._compact([length >= self.schedule.budget for length in self.lengths])

    def _compact(self, rows: list[bool], coming: list[int] | None = None) -> None:
        """Evict in the given rows; `coming` counts tokens of a question that is about to be fed."""
        assert self.schedule is not None
        before = self.occupancy.length
        arriving = coming or [0] * self.batch
        keep = {
            row: min(self.lengths[row], self.schedule.kept_tokens(self.questions[row]) - arriving[row])
            for row, evicts in enumerate(rows)
            if evicts
        }
        slots = self._slots(list(keep))
        kept = survivors(
            self.method.score(slots).expand(slots.columns.shape),
            slots.of_rows(self.next_slots()),
            torch.tensor(list(keep.values()), device=self.device),
            self.schedule.local_window,
            question=slots.question if self.method.protect_question else None,
            answer=slots.answer if self.method.protect_answer else None,
        )
        self._keep(slots, kept, keep)
        if self.listener is not None:
            positions = self._slots().positions.cpu() if self.record else None
            if positions is not None and not self.native:
                positions = positions[0, :, 0]
            step = self.occupancy.columns - self.turn_end if coming is None else 0
            self.listener(CompactionEvent(step, before, self.occupancy.length, positions))

    def _keep(self, slots: Slots, kept: torch.Tensor, lengths: dict[int, int]) -> None:
        """Move the kept slots of some rows together.

        Args:
            slots: of those rows.
            kept: bool, shaped as `slots.columns`.
            lengths: how many slots each of the rows keeps, in the order of `slots`.
        """
        before, rows = self.occupancy.length, slots.rows
        index = left_align(kept, max(lengths.values()))
        columns = slots.columns.gather(-1, index)
        if rows is not None:
            everything = self._slot_columns().clone()
            everything[:, rows, :, : columns.shape[-1]] = columns
            columns = everything
        self._move(index, rows)
        self.lengths = [lengths.get(row, length) for row, length in enumerate(self.lengths)]
        self.occupancy.length, self._next_slots = max(self.lengths), None
        self._columns.move(columns[..., : self.occupancy.length], self.next_slots())
        self.method.compact(index, rows, before, slots.of_rows(self.live())[:, : index.shape[-1]])

    def _move(self, index: torch.Tensor, rows: torch.Tensor | None) -> None:
        """Move slots of those rows, from the first one that changes. index: [groups, rows, heads, slots afterwards]."""
        width = index.shape[-1]
        moved = (index != torch.arange(width, device=index.device)).flatten(0, -2).any(dim=0)
        first = int(torch.where(moved.any(), moved.to(torch.uint8).argmax(), width))
        if first == width:
            return
        on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for group, layer in enumerate(self.budget_layers):
            device = layer.keys.device
            if device not in on_device:
                on_device[device] = index[..., first:].to(device), None if rows is None else rows.to(device)
            there, own_rows = on_device[device]
            layer.compact(there[group if self.native else 0], first, own_rows)

    def _slots(self, chosen: list[int] | None = None) -> Slots:
        """The cached tokens of some rows, all if None."""
        rows = None
        if chosen is not None and len(chosen) < self.batch:
            rows = torch.tensor(chosen, device=self.device)
        keys = [layer.keys[:, :, : self.occupancy.length] for layer in self.budget_layers]
        columns, live = self._slot_columns(), self.live()
        if rows is not None:
            columns, live = columns[:, rows], live[rows]
        return Slots(columns, live, self.history, keys, rows)

    def _slot_columns(self) -> torch.Tensor:
        """int64 [groups, batch, heads, slots in use]."""
        return self._columns.table(self.next_slots(), self.occupancy.length, self.occupancy.columns)
