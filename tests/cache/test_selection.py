"""The keep rule and the cache that follows it, driven without a model: random keys carry their own position along."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig

from dynts.cache.cache import BudgetCache
from dynts.cache.lengths import Compaction
from dynts.cache.method import Granularity, Method, Surroundings
from dynts.cache.selection import left_align, live_slots, right_align, select
from dynts.cache.slots import History, Slots
from dynts.cache.step import Turn
from dynts.config import CompressionConfig
from tiny import COMMON

LAYERS, HEADS, TURNS = 2, 2, 2
CPU = torch.device("cpu")
Held = list[list[list[list[int]]]]
LOWEST, HIGHEST = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max

SCORES = st.one_of(
    # few values, so that ties are common
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, LOWEST, HIGHEST]),
    st.floats(-2.0, 2.0, width=32),
)


def rank(score: float) -> float:
    """The score that counts: NaN lowest of all, and infinities no further than the largest float."""
    return LOWEST if math.isnan(score) else min(max(score, LOWEST), HIGHEST)


def best(scores: list[float], candidates: set[int], count: int) -> set[int]:
    """The `count` candidates with the highest scores, later ones first among equals: the rule in plain Python."""
    ordered = sorted(candidates, key=lambda slot: (rank(scores[slot]), slot), reverse=True)
    return set(ordered[:count])


@dataclass
class Choice:
    """Arguments of `select` for one row."""

    scores: list[float]
    pinned: list[bool]
    live: list[bool]
    keep: int


@st.composite
def choices(draw: st.DrawFn, slots: int) -> Choice:
    """A row whose live slots come first, as in the cache."""
    scores = draw(st.lists(SCORES, min_size=slots, max_size=slots))
    length = draw(st.integers(1, slots))
    live = [slot < length for slot in range(slots)]
    pinned = [draw(st.booleans()) and alive for alive in live]
    return Choice(scores, pinned, live, draw(st.integers(sum(pinned), sum(live))))


def run_select(rows: list[Choice]) -> Tensor:
    """`select` over a batch with one head: [batch, slots]."""
    scores = torch.tensor([row.scores for row in rows])[:, None]
    pinned = torch.tensor([row.pinned for row in rows])[:, None]
    live = torch.tensor([row.live for row in rows])[:, None]
    return select(scores, pinned, live, torch.tensor([row.keep for row in rows]))[:, 0]


@given(st.integers(1, 24).flatmap(lambda slots: st.lists(choices(slots), min_size=1, max_size=4)))
def test_select_keeps_the_pinned_then_the_best(rows: list[Choice]) -> None:
    for row, kept in zip(rows, run_select(rows).tolist(), strict=True):
        chosen = {slot for slot, stays in enumerate(kept) if stays}
        pinned = {slot for slot, stays in enumerate(row.pinned) if stays}
        live = {slot for slot, alive in enumerate(row.live) if alive}
        assert len(chosen) == row.keep
        assert pinned <= chosen <= live
        assert chosen - pinned == best(row.scores, live - pinned, row.keep - len(pinned))


@given(st.data(), st.integers(1, 24).flatmap(lambda slots: st.lists(choices(slots), min_size=2, max_size=4)))
def test_select_does_not_look_at_other_rows(data: st.DataObject, rows: list[Choice]) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    together = run_select(rows)
    assert torch.equal(run_select([rows[row] for row in order]), together[list(order)])
    for row, kept in zip(rows, together, strict=True):
        assert torch.equal(run_select([row])[0], kept)


@pytest.mark.quick
def test_select_by_hand() -> None:
    scores = torch.tensor([0.5, math.nan, 0.5, math.inf, 0.5, -math.inf, 0.1])
    live = torch.ones(1, 1, 7, dtype=torch.bool)
    pinned = torch.tensor([False] * 6 + [True])

    def kept(count: int) -> list[int]:
        return select(scores.expand(1, 1, 7), pinned, live, torch.tensor([count]))[0, 0].nonzero().flatten().tolist()

    # pinned first, then infinity, then the latest of three equals; NaN and -inf tie at the bottom, the later one stays
    assert [kept(count) for count in range(1, 8)] == [
        [6],
        [3, 6],
        [3, 4, 6],
        [2, 3, 4, 6],
        [0, 2, 3, 4, 6],
        [0, 2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


@pytest.mark.quick
def test_select_never_takes_a_dead_slot_however_high_its_score() -> None:
    scores = torch.tensor([[[math.inf, 5.0, 0.0, -math.inf]]])
    live = torch.tensor([[[False, False, True, True]]])
    kept = select(scores, torch.zeros(1, 1, 1, dtype=torch.bool), live, torch.tensor([2]))
    assert kept.tolist() == [[[False, False, True, True]]]


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4), st.data())
def test_right_align_moves_the_kept_in_order_to_the_end(rows: list[list[bool]], data: st.DataObject) -> None:
    width = data.draw(st.integers(max(sum(row) for row in rows), 12))
    for row, index in zip(rows, right_align(torch.tensor(rows), width).tolist(), strict=True):
        kept = [slot for slot, stays in enumerate(row) if stays]
        assert len(index) == width
        assert index[width - len(kept) :] == kept
        assert not any(row[slot] for slot in index[: width - len(kept)])


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4), st.data())
def test_left_align_moves_the_kept_in_order_to_the_front(rows: list[list[bool]], data: st.DataObject) -> None:
    width = data.draw(st.integers(max(sum(row) for row in rows), 12))
    for row, index in zip(rows, left_align(torch.tensor(rows), width).tolist(), strict=True):
        kept = [slot for slot, stays in enumerate(row) if stays]
        assert len(index) == width
        assert index[: len(kept)] == kept
        assert not any(row[slot] for slot in index[len(kept) :])


@given(st.integers(1, 20).flatmap(lambda width: st.tuples(st.just(width), st.lists(st.integers(0, width), min_size=1))))
def test_live_slots_are_the_first_ones(case: tuple[int, list[int]]) -> None:
    width, lengths = case
    live = live_slots(torch.tensor(lengths), width).tolist()
    assert live == [[slot < length for slot in range(width)] for length in lengths]


class Table(Method):
    """Scores looked up by group, head and logical position."""

    def __init__(self, table: Tensor, granularity: Granularity, protect_question: bool) -> None:
        self.table = table
        self.granularity = granularity
        self.protect_question = protect_question

    def score(self, slots: Slots) -> Tensor:
        """The table's scores; dead slots get whatever position 0 has."""
        positions = slots.positions.clamp(min=0)
        groups, batch, heads, _ = positions.shape
        return self.table[:groups, None, :heads].expand(groups, batch, heads, -1).gather(-1, positions)


@dataclass
class Row:
    """One conversation: question tokens and generated tokens of each turn."""

    questions: tuple[int, ...]
    generated: tuple[int, ...]


@dataclass
class Drive:
    """A batch fed to a cache without a model.

    Attributes:
        held: after every forward pass, per row, layer and head, the positions that the stored keys carry.
        events: the cache's compactions, with the positions that it says have survived.
        held_then: likewise at every compaction.
        fed: tokens of each row after every forward pass.
    """

    cache: BudgetCache
    held: list[Held] = field(default_factory=list)
    events: list[tuple[Compaction, Tensor]] = field(default_factory=list)
    held_then: list[Held] = field(default_factory=list)
    fed: list[list[int]] = field(default_factory=list)


def tags(row: int, layer: int, positions: list[int]) -> Tensor:
    """Keys [heads, tokens, 4] that say where they come from."""
    states = torch.empty(HEADS, len(positions), 4)
    states[..., 0] = torch.tensor(positions, dtype=torch.float32)
    states[..., 1], states[..., 2] = row, layer
    states[..., 3] = torch.arange(HEADS).unsqueeze(1)
    return states


def drive(rows: list[Row], names: list[int], method: Table, config: CompressionConfig) -> Drive:
    """Feed turns of a left-padded batch as the decoder would: questions in one pass, then token by token.

    `names` are the rows' tags. Rows generate equally many tokens in a turn.
    """
    model_config = AutoConfig.for_model("llama", **COMMON)
    started = method.start(Surroundings(list(range(LAYERS)), HEADS, config.local_window))

    def note(positions: Tensor) -> None:
        run.events.append((cache.stats.compactions[-1], positions))
        run.held_then.append(held())

    run = Drive(BudgetCache(model_config, started, config, History(None), CPU, record=note))
    cache, fed = run.cache, [0] * len(rows)

    def feed(counts: list[int], step: bool) -> None:
        width = max(counts)
        new = torch.tensor([[column >= width - count for column in range(width)] for count in counts])
        if not step:
            cache.announced = Turn(cache.occupancy.columns, cache.occupancy.columns + width, tuple(counts))
        plan = cache.plan(len(rows), width, None if step else new)
        positions = [
            [0] * (width - count) + list(range(start, start + count)) for start, count in zip(fed, counts, strict=True)
        ]
        for layer in range(LAYERS):
            keys = torch.stack([tags(name, layer, own) for name, own in zip(names, positions, strict=True)])
            cache.update(keys, -keys, layer)
        assert plan.kind == ("generated" if step else "turn")
        ids, hidden = torch.full((len(rows), width), 9), torch.zeros(len(rows), width, 1)
        cache.commit(plan, ids, torch.tensor(positions), hidden)
        cache.check_integrity()
        fed[:] = [start + count for start, count in zip(fed, counts, strict=True)]
        run.fed.append(list(fed))
        run.held.append(held())

    def held() -> Held:
        assert cache.occupancy.length <= config.budget
        return [[held_by(layer, row) for layer in range(LAYERS)] for row in range(len(rows))]

    def held_by(layer: int, row: int) -> list[list[int]]:
        slots = cache.budget_layers[layer]
        assert slots.keys.shape[2] <= config.budget
        keys = slots.keys[row, :, : cache.lengths[row]]
        assert torch.equal(slots.values[row, :, : cache.lengths[row]], -keys)
        positions = keys[..., 0].long().tolist()
        # row, layer and head never mix
        assert torch.equal(keys, torch.stack([tags(names[row], layer, own)[h] for h, own in enumerate(positions)]))
        return positions

    for turn in range(len(rows[0].questions)):
        counts = [row.questions[turn] for row in rows]
        feed(counts, step=False)
        for _ in range(rows[0].generated[turn]):
            feed([1] * len(rows), step=True)
    return run


@dataclass
class Case:
    """What a whole run of compactions is tried on."""

    config: CompressionConfig
    rows: list[Row]
    table: Tensor
    granularity: Granularity
    protect: bool

    def run(self, order: list[int]) -> Drive:
        """Drive the rows in that order."""
        method = Table(self.table, self.granularity, self.protect)
        return drive([self.rows[row] for row in order], order, method, self.config)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Ragged rows of up to two turns, long enough for several compactions."""
    window, ratio = draw(st.integers(0, 5)), draw(st.sampled_from([0.2, 0.4, 0.5, 0.9]))
    turns = draw(st.integers(1, TURNS))
    generated = tuple(draw(st.integers(0, 25)) for _ in range(turns))
    rows = [
        Row(tuple(draw(st.integers(1, 5)) for _ in range(turns)), generated) for _ in range(draw(st.integers(1, 3)))
    ]
    longest = max(sum(row.questions) for row in rows)
    config = CompressionConfig(longest + window + math.ceil(1 / ratio) + draw(st.integers(0, 6)), window, ratio)
    # all scores drawn one by one would be slow: a seed draws them, ties and odd values among them
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    table = torch.randint(0, draw(st.sampled_from([4, 1000])), (LAYERS, HEADS, 80), generator=generator).float()
    odd = torch.randint(0, 40, table.shape, generator=generator)
    for value, number in enumerate((math.nan, math.inf, -math.inf)):
        table[odd == value] = number
    return Case(config, rows, table, draw(st.sampled_from(["shared", "native"])), draw(st.booleans()))


def check_row(case: Case, run: Drive, index: int, row: Row) -> None:
    """Replay one row in plain Python: what every layer and head holds after every pass."""
    starts = [sum(row.questions[:turn]) + sum(row.generated[:turn]) for turn in range(len(row.questions))]
    ends = [start + count for start, count in zip(starts, row.questions, strict=True)]
    config, step = case.config, 0
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    cached: dict[tuple[int, int], list[int]] = {key: [] for key in heads}

    def compact(questions: list[tuple[int, int]], target: int) -> None:
        for layer, head in heads:
            own = cached[layer, head]
            pinned = set(own[len(own) - config.local_window :])
            if case.protect:
                pinned |= {position for position in own if any(start <= position < end for start, end in questions)}
            scores = case.table[(layer, head) if case.granularity == "native" else (0, 0)].tolist()
            rest = best(scores, set(own) - pinned, target - len(pinned))
            cached[layer, head] = sorted(pinned | rest)

    for turn, (start, end) in enumerate(zip(starts, ends, strict=True)):
        questions = list(zip(starts, ends, strict=True))[: turn + 1]
        target = config.kept_tokens(sum(row.questions[: turn + 1]))
        for first, last in [(start, end), *((end + n, end + n + 1) for n in range(row.generated[turn]))]:
            arriving = last - first
            if first == start and len(cached[0, 0]) + arriving > config.budget:
                compact(questions, min(len(cached[0, 0]), target - arriving))
            for key in heads:
                cached[key] += range(first, last)
            if len(cached[0, 0]) >= config.budget:
                compact(questions, target)
            for layer, head in heads:
                assert run.held[step][index][layer][head] == cached[layer, head], (step, layer, head)
            step += 1


@settings(max_examples=60, deadline=None)
@given(cases())
def test_whole_runs_follow_the_rule(case: Case) -> None:
    run = case.run(list(range(len(case.rows))))
    for index, row in enumerate(case.rows):
        check_row(case, run, index, row)
    for event, _ in run.events:
        # counted over the fullest row, which need not be the one that evicts
        assert event.after <= event.before <= case.config.budget
        assert event.after < event.before or len(case.rows) > 1


@settings(max_examples=40, deadline=None)
@given(cases(), st.data())
def test_other_rows_do_not_matter(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.rows))))
    together = case.run(list(range(len(case.rows))))
    shuffled = case.run(list(order))
    for step, held in enumerate(shuffled.held):
        assert held == [together.held[step][row] for row in order]
    for row in order:
        assert [held[0] for held in case.run([row]).held] == [held[row] for held in together.held]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_reported_positions_are_the_stored_ones(case: Case) -> None:
    run = case.run(list(range(len(case.rows))))
    for (event, positions), held in zip(run.events, run.held_then, strict=True):
        if case.granularity == "shared":
            assert positions.shape == (len(case.rows), event.after)
            positions = positions[None, :, None].expand(LAYERS, -1, HEADS, -1)
        assert positions.shape == (LAYERS, len(case.rows), HEADS, event.after)
        for row, layers in enumerate(held):
            for layer, heads in enumerate(layers):
                for head, own in enumerate(heads):
                    assert positions[layer, row, head].tolist() == own + [-1] * (event.after - len(own))


@pytest.mark.quick
@pytest.mark.parametrize("granularity", ["shared", "native"])
@pytest.mark.parametrize("protect", [True, False])
def test_many_compactions_of_ragged_rows(granularity: Granularity, protect: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    case = Case(
        CompressionConfig(20, 4, 0.5),
        [Row((3, 2), (70, 40)), Row((6, 4), (70, 40)), Row((1, 3), (70, 40))],
        torch.randint(0, 9, (LAYERS, HEADS, 130), generator=generator).float(),
        granularity,
        protect,
    )
    run = case.run([0, 1, 2])
    assert len(run.events) > 20
    for index, row in enumerate(case.rows):
        check_row(case, run, index, row)
        question = {*range(row.questions[0])}
        last = run.held[-1][index][1][1]
        assert (question <= set(last)) or not protect
        assert last[-4:] == list(range(run.fed[-1][index] - 4, run.fed[-1][index]))
