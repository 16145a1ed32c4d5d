"""A KV cache with a budget: it knows which token sits in which slot, and compacts itself when the budget is reached."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from dynts.cache.arrivals import (
    Hidden,
    arriving,
    check_mask,
    check_positions,
    count_on,
    find_hidden,
    hides_tokens,
)
from dynts.cache.compaction import Compactor
from dynts.cache.interface import FixedRowsCache
from dynts.cache.layer import Occupancy
from dynts.cache.lengths import Compaction, GenerationStats
from dynts.cache.method import Method, Observed
from dynts.cache.selection import left_align, live_slots
from dynts.cache.slots import History
from dynts.cache.step import NEVER, Contents, Kind, SlotColumns, Step, Turn, added
from dynts.config import CompressionConfig
from dynts.errors import DyntsError, UnsupportedError
from dynts.models.shape import full_attention_layers


class BudgetCache(FixedRowsCache):
    """Cache of one conversation (batch): full-attention layers share a budget, sliding-window layers keep their window.

    Rows are compacted on their own schedule: a row's tokens, budget and evictions are what they would be without the
    rest of the batch. Every row's tokens fill its slots from the first one on.

    `plan` says what a forward pass brings and where it goes, before it runs, and refuses what it must before anything
    changes. The layers store what comes in slots that are not in use. `commit` then makes a finished pass count; one
    that fails is dropped, and leaves the cache as it was. `check_integrity` states what holds between two passes.

    Args:
        model_config: configuration of the decoder.
        method: a started method (`Method.start`), which belongs to this cache alone.
        schedule: the budget and what a compaction keeps; None never evicts.
        history: an empty history.
        device: where the inputs are, and the bookkeeping; each layer's slots live on the layer's own device.
        record: told the surviving logical positions after every compaction: int64 [batch, kept], or
            [layers, batch, KV heads, kept] with native granularity, -1 for no token. None if nobody asks.
        fixed_shape: whether decode steps see all slots of the budget, used or not, so that no shape ever changes.

    Attributes:
        announced: a question or user turn that is being fed, however it is chunked. While one is announced, all that
            comes after it counts as generated, however many tokens come at a time: a text may be read as it was
            written.
        stats: what was measured since `measure`.
    """

    def __init__(
        self,
        model_config: PreTrainedConfig,
        method: Method,
        schedule: CompressionConfig | None,
        history: History,
        device: torch.device,
        record: Callable[[torch.Tensor], None] | None = None,
        fixed_shape: bool = False,
    ) -> None:
        table = SlotColumns(1, 1)
        if method.granularity == "native":
            table = SlotColumns(len(full_attention_layers(model_config)), method.kv_heads)
        contents = Contents(device, table, memory=method.memory())
        super().__init__(model_config, Occupancy(contents, schedule.budget if schedule else None, fixed_shape))
        self.native = method.granularity == "native"
        self.compactor = Compactor(self.occupancy, self.budget_layers, method, schedule, history)
        self.method = method
        self.schedule = schedule
        self.history = history
        self.device = device
        self.record = record
        self.announced: Turn | None = None
        self.stats = GenerationStats()

    @property
    def peak_bytes(self) -> int:
        """Most bytes allocated since `measure`."""
        return max(self.stats.peak_bytes, self.allocated_bytes)

    def measure(self) -> GenerationStats:
        """Start measuring anew, and return where: its peaks and compactions are kept up to date."""
        self.stats = GenerationStats(peak_tokens=self.occupancy.length, peak_bytes=self.allocated_bytes)
        return self.stats

    @property
    def room(self) -> int | None:
        """How many more tokens of each row lead to the next compaction; None without a budget."""
        if self.schedule is None:
            return None
        held = self.occupancy.contents
        ahead = (due - length for length, due in zip(held.lengths, held.due, strict=True))
        return min(ahead, default=self.schedule.budget)

    def check_turn(self, new_tokens: Sequence[int]) -> tuple[int, ...]:
        """Return the question tokens of each row, those of a coming turn included.

        Raises:
            DyntsError: the budget is too small for them, or the cache holds another number of rows.
        """
        self._check_rows(len(new_tokens))
        questions = added(self.questions or (0,) * len(new_tokens), new_tokens)
        if self.schedule is not None:
            self.schedule.check_question(max(questions))
        return questions

    def plan(
        self, rows: int, tokens: int, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> Step:
        """Say what a forward pass brings and where it goes. Room is made for a turn; all else changes in `commit`.

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
        if self.occupancy.step is not None:
            self.drop()
        self._check_rows(rows)
        check_mask(mask, rows, tokens, self.occupancy.columns)
        try:
            with bookkeeping():
                kind = self._kind(tokens)
                if kind == "generated":
                    step = self._plan_generated(rows, mask, positions)
                else:
                    step = self._plan_several(kind, rows, tokens, mask, positions)
                for layer in self.state_layers:
                    layer.begin()
        except BaseException:
            self.drop()
            raise
        self.occupancy.step = step
        return step

    def commit(
        self,
        step: Step,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
        seen: Sequence[Observed] = (),
    ) -> None:
        """Make a finished forward pass count, and compact the rows that are due. If that fails, nothing has changed.

        Args:
            step: its plan.
            tokens: int64 [batch, new tokens], -1 where unknown.
            positions: int64 [batch or 1, new tokens].
            hidden: [batch, new tokens, hidden size], the decoder's last hidden state.
            seen: of each full-attention layer, if the method looks at attention.
        """
        with bookkeeping():
            before = self.occupancy.length + step.tokens
            contents = self.occupancy.contents.after(step)
            if self.schedule is not None and step.turn is not None:
                contents = replace(contents, due=self._due(contents, step))
            if seen:
                self.method.remember_attention(seen)  # of the keys as attention saw them, not arranged yet
            if step.arrangement is not None:
                assert step.live is not None
                self.method.compact(step.arrangement[None, :, None], None, before, contents.live())
                positions = positions.expand_as(tokens).masked_fill(~step.live[:, -step.tokens :], -1)
            elif not all(step.coming):
                positions = positions.expand_as(tokens).masked_fill(~self.occupancy.contents.occupied[:, None], -1)
            self.history.append(tokens, positions, asked=step.kind == "turn")
            self.method.observe_hidden(hidden, generated=step.kind != "turn")
            if self.schedule is not None and contents.full:
                keep = {row: self._kept(contents.lengths[row], contents.questions[row]) for row in contents.full}
                self._evict(contents, keep, contents.questions, contents.columns - contents.turn_end)
            else:
                self.compactor.write(contents)
            for layer in self.state_layers:
                layer.settle()
        if step.turn is None:
            self.stats.count(contents.lengths, step.coming)
        self.stats.peak_tokens = max(self.stats.peak_tokens, step.length)
        if step.tokens > 1:  # sliding-window layers hold a whole prompt for a moment; all others only grow
            self.stats.peak_bytes = self.peak_bytes

    def drop(self) -> None:
        """Forget a forward pass that was planned and not committed."""
        contents = self.occupancy.contents
        self.occupancy.step = None
        self.method.recall(contents.memory)
        self.history.truncate(contents.columns)

    def check_integrity(self) -> None:
        """Assert what holds between two forward passes, for tests and debugging: the cost grows with the cache."""
        held, budget = self.occupancy.contents, self.schedule.budget if self.schedule else None
        assert self.occupancy.step is None, "no pass is open"
        assert not self.occupancy.torn, "all layers have moved alike"
        rows = {len(held.lengths), len(held.next_positions), *(len(turn.tokens) for turn in held.turns)}
        assert rows == {held.batch}, "all speak of the same rows"
        if not held.batch:
            return
        assert not held.full, "a row that is due is compacted at once"
        assert budget is None or all(due in (NEVER, min(due, budget)) for due in held.due), "within the budget"
        assert held.counts.tolist() == [list(held.lengths), list(held.next_positions)], "host and device count alike"
        ends = [0, *(end for turn in held.turns for end in (turn.start, turn.end)), held.columns]
        assert ends == sorted(ends), "turns follow one another, and have been fed"
        tokens, positions = self.history.tokens(), self.history.positions()
        assert tokens.shape == positions.shape == (held.batch, held.columns), "every column is remembered"
        assert (positions >= 0).sum(dim=1).tolist() == list(held.next_positions), "positions count tokens"
        slots = self.compactor.slots(held)
        cached = slots.columns.masked_fill(~slots.live[:, None], held.columns)
        assert bool((cached.diff(dim=-1) > 0).logical_or(~slots.live[:, None, 1:]).all()), (
            "slots keep the tokens' order"
        )
        assert bool((slots.positions >= 0).eq(slots.live[:, None]).all()), "live slots hold tokens, and no padding"
        if self.method.protect_question:
            asked = (self.history.asked() & (positions >= 0)).sum(dim=1)
            assert asked.tolist() == list(held.questions), "questions are known by their columns"
            assert bool((slots.question.sum(dim=-1) == asked[:, None]).all()), "protected questions are whole"
        for layer in self.budget_layers:
            assert layer.keys.shape[:3] == layer.values.shape[:3], "keys and values share their slots"
            assert len(layer.keys) == held.batch, "every row has slots"
            assert held.length <= layer.keys.shape[2] <= (budget or layer.keys.shape[2]), "slots within the budget"

    def _check_rows(self, rows: int) -> None:
        if self.batch not in (0, rows):
            raise DyntsError(f"the cache holds {self.batch} rows but the input has {rows}: use a new cache")

    def _kind(self, tokens: int) -> Kind:
        """Return what that many columns are."""
        columns, turn = self.occupancy.columns, self.announced
        if columns == 0 or (tokens > 1 if turn is None else columns < turn.end):
            return "turn"
        return "generated" if tokens == 1 else "forced"

    def _plan_generated(self, rows: int, mask: torch.Tensor | None, positions: torch.Tensor | None) -> Step:
        """Plan a generated token of each row: integers of the host decide."""
        held, fixed = self.occupancy.contents, self.occupancy.fixed_shape
        slots = live = None
        if held.ragged:
            self._check_window(mask, 1)
        if held.ragged or fixed:
            width = self.occupancy.capacity if fixed and self.occupancy.capacity else held.length + 1
            slots = torch.arange(rows, device=self.device), held.next_slots
            live = live_slots(held.next_slots + 1, width)
        if positions is None:
            positions = held.counts[1].unsqueeze(1)
        coming = tuple(int(length > 0) for length in held.lengths)
        return Step("generated", 1, coming, held.length + 1, positions, live=live, slots=slots)

    def _plan_several(
        self, kind: Kind, rows: int, tokens: int, mask: torch.Tensor | None, given: torch.Tensor | None
    ) -> Step:
        """Plan tokens of a turn, or several that count as generated."""
        held = self.occupancy.contents.started(rows)
        new, coming = arriving(mask, rows, tokens, self.device)
        if held.columns:
            self._check_begun(tokens)
        if self.state_layers and new is not None:
            self._check_padding(held, tokens, new)
        hidden = None if mask is None or mask.shape[1] == tokens else self._hidden(held, mask)
        lengths = held.lengths if hidden is None else hidden.lengths
        if hidden is not None:
            held = replace(held, next_positions=hidden.next_positions)
        positions = count_on(held.next_positions, tokens, self.device, new)
        if given is not None:
            check_positions(given, positions, new)
            positions = given
        turn, keep = None, {}
        questions: tuple[int, ...] = ()
        if kind == "turn":
            whole = coming
            if self.announced is not None and self.announced.start == held.columns:
                whole = self.announced.tokens
            questions = self.check_turn(whole)
            keep = self._room_for(whole, lengths, questions)
            turn = held.turn(tokens, coming)
        elif self.room is not None and tokens > self.room:
            raise DyntsError(
                f"{tokens} generated tokens at a time lead beyond the next compaction: feed at most {self.room}"
            )
        lengths = tuple(keep.get(row, length) for row, length in enumerate(lengths))
        # how many tokens a threshold leaves, only the scores tell
        unknown = bool(keep) and rows > 1 and self.schedule is not None and self.schedule.threshold is not None
        arranged = unknown or new is not None or min(lengths) < max(lengths)
        if arranged:
            self._check_window(mask, tokens)

        # from here on nothing is refused
        if hidden is not None:
            self.compactor.keep(held, hidden.slots, hidden.kept, dict(enumerate(hidden.lengths)))
            self.history.hide(hidden.shown)
        if keep:
            self._evict(self.occupancy.contents, keep, questions, step=0)
            lengths = self.occupancy.contents.lengths
        after, live, arrangement = max(added(lengths, coming)), None, None
        if arranged:
            contents = self.occupancy.contents.started(rows)
            new = torch.ones(rows, tokens, dtype=torch.bool, device=self.device) if new is None else new
            live = torch.cat([contents.live(), new], dim=1)
            arrangement = left_align(live, after)
        return Step(kind, tokens, coming, after, positions, turn, live, arrangement=arrangement)

    def _due(self, contents: Contents, step: Step) -> tuple[int, ...]:
        """Return at how many cached tokens each row is compacted next.

        Args:
            contents: with the tokens of a turn that have come.
            step: which brought them.
        """
        schedule = self.schedule
        assert schedule is not None
        if len(contents.turns) == 1:
            asked = contents.questions
            return tuple(schedule.next_compaction(tokens + schedule.local_window, tokens) for tokens in asked)
        # a later turn brings nothing nearer but the budget
        return tuple(min(schedule.budget, due) for due in added(contents.due, step.coming))

    def _kept(self, length: int, question: int) -> int:
        """Return how many tokens a row that is due keeps, at most if there is a threshold.

        Args:
            length: cached tokens.
            question: those of the question.
        """
        assert self.schedule is not None
        # before the budget is reached only what lies below the threshold has to go
        return length if length < self.schedule.budget else self.schedule.kept_tokens(question)

    def _room_for(self, turn: Sequence[int], lengths: Sequence[int], questions: Sequence[int]) -> dict[int, int]:
        """Return the rows that must evict before a turn, and how many cached tokens each keeps.

        Args:
            turn: its tokens in each row.
            lengths: cached tokens of each row.
            questions: question tokens of each row, those of the turn included.
        """
        if self.schedule is None:
            return {}
        return {
            row: min(length, self.schedule.kept_tokens(question) - arriving)
            for row, (length, question, arriving) in enumerate(zip(lengths, questions, turn, strict=True))
            if length + arriving > self.schedule.budget
        }

    def _hidden(self, held: Contents, mask: torch.Tensor) -> Hidden | None:
        """Return what a mask over all columns, new ones included, hides of cached tokens; None if nothing."""
        shown = mask[:, : held.columns].to(self.device, torch.bool)
        if not hides_tokens(shown, self.history):
            return None
        if self.state_layers:
            raise UnsupportedError(
                "the attention mask hides tokens that were fed, such as those after a row's end, and linear-attention, "
                "convolution or Mamba layers cannot take them out of their state: continue rows that ended at "
                "different times one by one, each from a cache of its own"
            )
        if self.native and self.method.heads_group is not None:
            # what follows depends on the heads, and processes that came to different results would wait for each other
            raise UnsupportedError(
                "the attention mask hides cached tokens, and with native granularity no process knows all heads: "
                "continue rows that ended at different times one by one, or use shared granularity"
            )
        return find_hidden(shown, self.compactor.slots(held))

    def _check_window(self, mask: torch.Tensor | None, tokens: int) -> None:
        """Refuse rows of different lengths where a sliding window cannot tell what is padding."""
        if self.sliding_layers and (mask is None or mask.shape[1] != self.occupancy.columns + tokens):
            raise UnsupportedError(
                "sliding-window layers need an attention_mask that covers the whole conversation once rows differ in "
                "length"
            )

    def _check_begun(self, tokens: int) -> None:
        """Refuse several tokens where the model would forget what came before."""
        if tokens > 1 and self.one_at_a_time:
            raise UnsupportedError(
                "this model begins its state anew when several tokens come at a time: continue with one token at a "
                "time, as generate() does with prefill_chunk_size=1"
            )

    def _check_padding(self, held: Contents, tokens: int, new: torch.Tensor) -> None:
        """Refuse padding that would change the state of a sequence.

        Args:
            held: before the pass.
            tokens: columns of the input.
            new: bool [batch, tokens], False for padding.
        """
        begun = torch.tensor(held.next_positions, device=self.device).unsqueeze(1) + new.cumsum(dim=1) > 0
        # of a single column transformers takes no mask
        if tokens == 1 or bool((begun & ~new).any()):
            raise UnsupportedError(
                "linear-attention, convolution or Mamba layers take padding into their state once a row has begun: "
                "pad on the left, before the first token of a row, in chunks of 2 columns or more, and continue rows "
                "with turns of different lengths one by one"
            )

    def _evict(self, contents: Contents, keep: dict[int, int], questions: tuple[int, ...], step: int) -> None:
        """Compact, and write down that it was, if anything was evicted: a threshold may leave all tokens.

        Args:
            contents: what the slots hold, a pass that is being committed included.
            keep: the rows that evict, and how many tokens each keeps.
            questions: question tokens of each row, those of a coming turn included.
            step: tokens generated and fed back since the latest question; 0 where room was made for a new turn.
        """
        self.compactor.compact(contents, keep, questions)
        left = self.occupancy.contents
        if left.lengths == contents.lengths:
            return
        self.stats.compactions.append(Compaction(step, contents.length, left.length))
        if self.record is not None:
            positions = self.compactor.slots(left).positions.cpu()
            self.record(positions if self.native else positions[0, :, 0])


@contextmanager
def bookkeeping() -> Iterator[None]:
    """Let what is computed in here be used in every mode, and no gradient flow through it."""
    with torch.inference_mode(False), torch.no_grad():  # in this order: the first turns gradients on
        yield
