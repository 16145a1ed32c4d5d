"""A KV cache with a budget: it knows which token sits in which slot, and compacts itself when the budget is reached."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig

from dynts.cache.interface import FixedRowsCache
from dynts.cache.layer import BudgetLayer, Occupancy, SlidingLayer
from dynts.cache.method import Method
from dynts.cache.selection import left_align, live_slots, survivors
from dynts.cache.slots import History, Slots
from dynts.cache.step import CompactionEvent, Contents, Kind, SlotColumns, Step, Turn
from dynts.config import CompressionConfig
from dynts.errors import DyntsError, UnsupportedError
from dynts.models.shape import full_attention_layers


class BudgetCache(FixedRowsCache):
    """Cache of one conversation (batch): full-attention layers share a budget, sliding-window layers keep their window.

    Rows are compacted on their own schedule: a row's tokens, budget and evictions are what they would be without the
    rest of the batch. Every row's tokens fill its slots from the first one on.

    `plan` says what a forward pass brings and where it goes, before it runs, and refuses what it must before anything changes.
    The layers store what comes in slots that are not in use. `commit` then makes a finished pass count; one that fails is
    dropped, and leaves the cache as it was.

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
        announced: the question or user turn that the running generate() call feeds, however it is chunked.
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
        self.native = method.granularity == "native"
        layers: list[Any] = DynamicCache(config=model_config).layers
        self.full_layers = {layer: group for group, layer in enumerate(full_attention_layers(model_config))}
        table = SlotColumns(len(self.full_layers), method.kv_heads) if self.native else SlotColumns(1, 1)
        contents = Contents(device, table, memory=method.memory())
        self.occupancy = Occupancy(contents, schedule.budget if schedule else None, fixed_shape)
        self.budget_layers = [BudgetLayer(self.occupancy) for _ in self.full_layers]
        self.sliding_layers = [
            SlidingLayer(self.occupancy, layer.sliding_window)
            for index, layer in enumerate(layers)
            if index not in self.full_layers
        ]
        full, sliding = iter(self.budget_layers), iter(self.sliding_layers)
        super().__init__(layers=[next(full if index in self.full_layers else sliding) for index in range(len(layers))])
        self.method = method
        self.schedule = schedule
        self.history = history
        self.device = device
        self.record = record
        self.listener: Callable[[CompactionEvent], None] | None = None
        self.announced: Turn | None = None
        self.forced = False
        self.peak_length = 0
        self._prompt_bytes = 0
        self._begun = False

    @property
    def batch(self) -> int:
        """Rows, 0 before the first forward pass."""
        return self.occupancy.contents.batch

    @property
    def lengths(self) -> tuple[int, ...]:
        """Cached tokens of each row."""
        return self.occupancy.contents.lengths

    @property
    def next_positions(self) -> tuple[int, ...]:
        """Logical position of each row's next token."""
        return self.occupancy.contents.next_positions

    @property
    def questions(self) -> tuple[int, ...]:
        """Question tokens that each row was fed, all turns together."""
        return self.occupancy.contents.questions

    @property
    def turn_end(self) -> int:
        """Column after the latest question or user turn, as far as it was fed."""
        return self.occupancy.contents.turn_end

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all allocated key and value tensors, sliding-window layers included."""
        tensors = [
            tensor for layer in self.sliding_layers for tensor in (layer.keys, layer.values) if tensor is not None
        ]
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
            DyntsError: nobody has planned for these tokens, as a dynts context does for every forward pass.
        """
        step = self.occupancy.step
        if step is None or step.tokens != key_states.shape[2]:
            raise DyntsError(
                "this cache evicts tokens, and works only within a dynts.compress context of the model that filled it: "
                "enter one, or start without this cache"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where queries stand for causal masks: at the next slot, or at the next column for sliding-window layers."""
        return self.occupancy.length if layer_idx in self.full_layers else self.occupancy.columns

    def live(self) -> torch.Tensor:
        """bool [batch, slots in use]: slots that hold a token."""
        return self.occupancy.contents.live()

    @property
    def room(self) -> int | None:
        """How many more tokens of each row lead to the next compaction; None without a budget."""
        return None if self.schedule is None else self.schedule.budget - self.occupancy.length

    def check_turn(self, new_tokens: Sequence[int]) -> tuple[int, ...]:
        """Question tokens of each row, those of a coming turn included.

        Raises:
            DyntsError: the budget is too small for them, or the cache holds another number of rows.
        """
        self._check_rows(len(new_tokens))
        questions = _added(self.questions or (0,) * len(new_tokens), new_tokens)
        if self.schedule is not None:
            self.schedule.check_question(max(questions))
        return questions

    def plan(
        self, rows: int, tokens: int, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> Step:
        """Say what a forward pass brings and where it goes. Makes room for a turn; nothing else changes before `commit`.

        Args:
            rows: of the input.
            tokens: columns of the input, padding included.
            mask: [rows, tokens], or with all columns fed before; 0 for padding. None where all are tokens.
            positions: int64 [rows or 1, tokens]; None counts on.

        Raises:
            DyntsError: the input does not fit the cache, or its budget.
            UnsupportedError: what the mask or the positions ask for cannot be done exactly.
        """
        if self.occupancy.torn:
            raise DyntsError("this cache was interrupted while it moved its tokens, and has lost some: start a new one")
        if self._begun:
            self.drop()
        self._begun = True
        self._check_rows(rows)
        columns = self.occupancy.columns
        if mask is not None and (len(mask) != rows or mask.shape[1] not in (tokens, columns + tokens)):
            raise DyntsError(
                f"attention_mask has {mask.shape[1]} columns in {len(mask)} rows; expected {tokens} for the new tokens, "
                f"or {columns + tokens} with those in the cache, in {rows} rows"
            )
        with _bookkeeping():
            kind = self._kind(tokens)
            if kind == "generated":
                step = self._plan_generated(rows, mask, positions)
            else:
                step = self._plan_several(kind, rows, tokens, mask, positions)
        self.occupancy.step = step
        return step

    def commit(self, step: Step, tokens: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor) -> None:
        """Make a finished forward pass count, and compact if the budget is reached. If that fails, nothing has changed.

        Args:
            step: its plan.
            tokens: int64 [batch, new tokens], -1 where unknown.
            positions: int64 [batch or 1, new tokens].
            hidden: [batch, new tokens, hidden size], the decoder's last hidden state.
        """
        with _bookkeeping():
            held = self.occupancy.contents.started(len(step.coming))
            contents = replace(
                held,
                lengths=_added(held.lengths, step.coming),
                next_positions=_added(held.next_positions, step.coming),
                columns=held.columns + step.tokens,
                turns=held.turns if step.turn is None else held.turns_with(step.turn),
                counted=None if step.slots is None else held.next_slots + 1,
            )
            if step.arrangement is not None:
                assert step.live is not None
                index = step.arrangement[None, :, None]
                arrived = torch.arange(held.columns, contents.columns, device=self.device).expand(contents.batch, -1)
                columns = torch.cat([held.slot_columns(), held.table.spread(arrived)], dim=-1)
                columns = columns.gather(-1, index.expand(*columns.shape[:3], -1))
                contents = contents.with_table(columns)
                self.method.compact(index, None, held.length + step.tokens, contents.live())
                positions = positions.expand_as(tokens).masked_fill(~step.live[:, -step.tokens :], -1)
            self.history.append(tokens, positions)
            self.method.observe_hidden(hidden, generated=step.kind != "turn")
            keep = {}
            if self.schedule is not None and contents.length >= self.schedule.budget:
                keep = {
                    row: min(length, self.schedule.kept_tokens(question))
                    for row, (length, question) in enumerate(zip(contents.lengths, contents.questions, strict=True))
                    if length >= self.schedule.budget
                }
            if keep:
                self._compact(contents, keep, contents.columns - contents.turn_end)
            else:
                self._write(contents)
        self._begun = False
        self.peak_length = max(self.peak_length, step.length)
        if step.tokens > 1:  # sliding-window layers hold a whole prompt for a moment; all others only grow
            self._prompt_bytes = self.peak_bytes

    def drop(self) -> None:
        """Forget a forward pass that was planned and not committed."""
        contents = self.occupancy.contents
        self.occupancy.step, self._begun = None, False
        self.method.recall(contents.memory)
        self.history.truncate(contents.columns)

    def _check_rows(self, rows: int) -> None:
        if self.batch not in (0, rows):
            raise DyntsError(f"the cache holds {self.batch} rows but the input has {rows}: use a new cache")

    def _kind(self, tokens: int) -> Kind:
        """What that many columns are."""
        columns, asked = self.occupancy.columns, 0 if self.announced is None else self.announced.end
        if columns == 0 or columns < asked or not (tokens == 1 or self.forced):
            return "turn"
        return "generated" if tokens == 1 else "forced"

    def _plan_generated(self, rows: int, mask: torch.Tensor | None, positions: torch.Tensor | None) -> Step:
        """A generated token of each row: integers of the host decide."""
        held, fixed = self.occupancy.contents, self.occupancy.fixed_shape
        slots = live = None
        if held.ragged or fixed:
            self._check_window(mask, 1)
            width = self.occupancy.capacity if fixed and self.occupancy.capacity else held.length + 1
            slots = torch.arange(rows, device=self.device), held.next_slots
            live = live_slots(held.next_slots + 1, width)
        if positions is None:
            positions = self._count(held.next_positions, 1)
        return Step("generated", 1, (1,) * rows, held.length + 1, positions, live=live, slots=slots)

    def _plan_several(
        self, kind: Kind, rows: int, tokens: int, mask: torch.Tensor | None, given: torch.Tensor | None
    ) -> Step:
        """Tokens of a turn, or several that count as generated."""
        held = self.occupancy.contents.started(rows)
        new = None if mask is None else mask[:, -tokens:].to(self.device, torch.bool)
        coming = (tokens,) * rows if new is None else tuple(new.sum(dim=1).tolist())
        if min(coming) == tokens:
            new = None
        hidden = None
        if mask is not None and held.columns and mask.shape[1] > tokens:
            hidden = self._hidden(held, mask[:, : held.columns].to(self.device, torch.bool))
        if hidden is not None:
            held = replace(held, next_positions=hidden.next_positions)
        positions = self._count(held.next_positions, tokens, new)
        if given is not None:
            _check_positions(given, positions, new)
            positions = given
        lengths = held.lengths if hidden is None else hidden.lengths
        turn, keep = None, {}
        if kind == "turn":
            whole = coming
            if self.announced is not None and self.announced.start == held.columns:
                whole = self.announced.tokens
            keep = self._room_for(whole, lengths)
            turn = held.turn(tokens, coming)
        elif self.room is not None and tokens > self.room:
            raise DyntsError(
                f"{tokens} generated tokens at a time lead beyond the next compaction: feed at most {self.room}"
            )
        lengths = tuple(keep.get(row, length) for row, length in enumerate(lengths))
        arranged = new is not None or min(lengths) < max(lengths)
        if arranged:
            self._check_window(mask, tokens)

        # from here on nothing is refused
        if hidden is not None:
            self._keep(held, hidden.slots, hidden.kept, dict(enumerate(hidden.lengths)))
            self.history.hide(hidden.shown)
        if keep:
            self._compact(self.occupancy.contents, keep, step=0)
        after, live, arrangement = max(_added(lengths, coming)), None, None
        if arranged:
            contents = self.occupancy.contents.started(rows)
            new = torch.ones(rows, tokens, dtype=torch.bool, device=self.device) if new is None else new
            live = torch.cat([contents.live(), new], dim=1)
            arrangement = left_align(live, after)
        return Step(kind, tokens, coming, after, positions, turn, live, arrangement=arrangement)

    def _room_for(self, turn: Sequence[int], lengths: Sequence[int]) -> dict[int, int]:
        """The rows that must evict before a turn of that many tokens, and how many of their cached tokens each keeps."""
        questions = self.check_turn(turn)
        if self.schedule is None:
            return {}
        return {
            row: min(length, self.schedule.kept_tokens(question) - arriving)
            for row, (length, question, arriving) in enumerate(zip(lengths, questions, turn, strict=True))
            if length + arriving > self.schedule.budget
        }

    def _hidden(self, held: Contents, shown: torch.Tensor) -> "_Hidden | None":
        """What the attention mask of a new turn hides of cached tokens (rows that had ended before others).

        Args:
            held: what is cached.
            shown: bool [batch, columns fed so far].

        Raises:
            DyntsError: it shows padding as tokens.
            UnsupportedError: heads of one row would be left with different numbers of tokens.
        """
        tokens = self.history.positions() >= 0
        strange = (shown & ~tokens).any(dim=1).tolist()
        if any(strange):
            row = strange.index(True)
            raise DyntsError(
                f"attention_mask shows a token of row {row} that was padding when it was fed, or that an earlier mask has "
                "hidden: the cache does not hold it; hide it again"
            )
        if torch.equal(shown, tokens):
            return None
        if self.native and self.method.heads_group is not None:
            # what follows depends on the heads, and processes that came to different results would wait for each other
            raise UnsupportedError(
                "the attention mask hides cached tokens, and with native granularity no process knows all heads: continue rows "
                "that ended at different times one by one, or use shared granularity"
            )
        slots = self._slots(held)
        kept = slots.lookup(shown) & slots.live[:, None]
        counts = kept.sum(dim=-1)
        if not bool((counts == counts[:1, :, :1]).all()):
            raise UnsupportedError(
                "the attention mask hides tokens that some heads have evicted and others not (native granularity): "
                "continue rows that ended at different times one by one"
            )
        return _Hidden(shown, slots, kept, tuple(counts[0, :, 0].tolist()), tuple(shown.sum(dim=1).tolist()))

    def _check_window(self, mask: torch.Tensor | None, tokens: int) -> None:
        """Refuse rows of different lengths where a sliding window cannot tell what is padding."""
        if self.sliding_layers and (mask is None or mask.shape[1] != self.occupancy.columns + tokens):
            raise UnsupportedError(
                "sliding-window layers need an attention_mask that covers the whole conversation once rows differ in length"
            )

    def _count(self, first: Sequence[int], tokens: int, new: torch.Tensor | None = None) -> torch.Tensor:
        """int64 [batch, tokens]: positions of tokens that go on counting from each row's first, padding left out."""
        start = torch.tensor(first, device=self.device).unsqueeze(1)
        if new is None:
            return start + torch.arange(tokens, device=self.device)
        return start + (new.long().cumsum(dim=1) - 1).clamp(min=0)

    def _compact(self, contents: Contents, keep: dict[int, int], step: int) -> None:
        """Evict.

        Args:
            contents: what the slots hold, a pass that is being committed included.
            keep: the rows that evict, and how many tokens each keeps.
            step: for the listener.
        """
        assert self.schedule is not None
        slots = self._slots(contents, list(keep))
        kept = survivors(
            self.method.score(slots).expand(slots.columns.shape),
            slots.of_rows(contents.next_slots),
            torch.tensor(list(keep.values()), device=self.device),
            self.schedule.local_window,
            question=slots.question if self.method.protect_question else None,
            answer=slots.answer if self.method.protect_answer else None,
        )
        self._keep(contents, slots, kept, keep)
        if self.listener is not None:
            left = self.occupancy.contents
            positions = self._slots(left).positions.cpu() if self.record else None
            if positions is not None and not self.native:
                positions = positions[0, :, 0]
            self.listener(CompactionEvent(step, contents.length, left.length, positions))

    def _keep(self, contents: Contents, slots: Slots, kept: torch.Tensor, lengths: dict[int, int]) -> None:
        """Move the kept slots of some rows together.

        Args:
            contents: what the slots hold.
            slots: of those rows.
            kept: bool, shaped as `slots.columns`.
            lengths: how many slots each of the rows keeps, in the order of `slots`.
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
            counted=None,
        )
        left = left.with_table(columns[..., : left.length])
        self.method.compact(index, rows, contents.length, slots.of_rows(left.live())[:, : index.shape[-1]])
        self._write(left, index, rows)

    def _write(self, contents: Contents, index: torch.Tensor | None = None, rows: torch.Tensor | None = None) -> None:
        """Make these the contents of the slots, which move as in `_move`. All that can fail otherwise is done by now."""
        contents = replace(contents, memory=self.method.memory())
        if index is not None:
            self._move(index, rows)
        self.occupancy.contents, self.occupancy.step, self.occupancy.torn = contents, None, False

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

    def _slots(self, contents: Contents, chosen: list[int] | None = None) -> Slots:
        """The cached tokens of some rows, all if None."""
        rows = None
        if chosen is not None and len(chosen) < contents.batch:
            rows = torch.tensor(chosen, device=self.device)
        keys = [layer.keys[:, :, : contents.length] for layer in self.budget_layers]
        columns, live = contents.slot_columns(), contents.live()
        if rows is not None:
            columns, live = columns[:, rows], live[rows]
        return Slots(columns, live, self.history, contents.turns, keys, rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Hidden:
    """Cached tokens that an attention mask hides.

    Attributes:
        shown: bool [batch, columns fed so far], False for them and for padding.
        slots: of all rows.
        kept: bool, shaped as `slots.columns`, True for the others.
        lengths: how many others each row has.
        next_positions: logical position of each row's next token.
    """

    shown: torch.Tensor
    slots: Slots
    kept: torch.Tensor
    lengths: tuple[int, ...]
    next_positions: tuple[int, ...]


@contextmanager
def _bookkeeping() -> Iterator[None]:
    """What is computed in here can be used in every mode, and no gradient flows through it."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _check_positions(given: torch.Tensor, expected: torch.Tensor, new: torch.Tensor | None) -> None:
    """Refuse positions that do not go on counting. All int64 [batch, tokens]; new: bool, False for padding."""
    fits = given.ndim == 2 and given.shape[1] == expected.shape[1] and len(given) in (1, len(expected))
    if fits:
        wrong = given.to(expected.device) != expected
        fits = not bool((wrong if new is None else wrong & new).any())
    if not fits:
        raise UnsupportedError(
            "position_ids must go on counting each row's tokens: leave them to dynts, "
            "and cover the whole conversation with attention_mask when continuing one"
        )


def _added(before: Iterable[int], new: Iterable[int]) -> tuple[int, ...]:
    """Counts of each row, added up."""
    return tuple(old + more for old, more in zip(before, new, strict=True))
