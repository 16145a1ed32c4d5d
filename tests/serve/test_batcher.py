"""The thread that generates for a server: who joins when, what each gets, and what becomes of failures."""

import queue
import random
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.prompts import chat_prompt
from dynts.config import CompressionConfig, Sampling
from dynts.decode.answers import answer_questions
from dynts.decode.compress import Session, compress
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.sampling import RowSampling
from dynts.decode.tasks import RowTask, RowToken
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError
from dynts.serve.running import Ended, Piece, Row, RunningRow
from dynts.serve.server import cache_bytes
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.task import HELD_OUT, make_problem


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_tiny_model()


@pytest.fixture
def session(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Iterator[Session]:
    model, tokenizer = tiny
    config = CompressionConfig(budget=150, local_window=40, retention_ratio=0.5)
    with compress(model, "dynts", config, load_tiny_predictor(), tokenizer=tokenizer) as entered:
        yield entered


class Asked:
    """A row, and the queue of what it told."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, number: int = 0, tokens: int = 60, **fields: Any) -> None:
        self.question = make_problem(HELD_OUT[number], steps=range(4, 5)).question
        prompt = tokenizer.encode(chat_prompt(tokenizer, self.question), add_special_tokens=False)
        self.told: queue.Queue[Any] = queue.Queue()
        self.row = Row(0, list(prompt), Sampling(tokens, 0.0, **fields), (), self.told.put)

    def all(self) -> list[Any]:
        """Everything up to the end."""
        found = []
        while not found or isinstance(found[-1], Piece):
            found.append(self.told.get(timeout=30))
        return found

    def first(self) -> Any:
        return self.told.get(timeout=30)


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


class Order:
    """Whose tokens came, in their order, and what is done at some of them, within the thread that generates.

    Attributes:
        names: of the rows that are looked at.
        seen: the name of the row that each token is of.
        then: what is done after a row's token of that number, 1 for its first.
        fed: tokens of each forward pass, and after how many tokens of all rows it came.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
        self.names: dict[Row, str] = {}
        self.seen: list[str] = []
        self.then: dict[tuple[str, int], Callable[[RowToken], object]] = {}
        self.fed: list[tuple[int, int]] = []
        take, forward = RunningRow.take, type(model).forward

        def noted(running: RunningRow, token: RowToken) -> bool:
            name = self.names[running.row]
            self.seen.append(name)
            ended = take(running, token)
            self.then.get((name, self.seen.count(name)), lambda _: None)(token)
            return ended

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.fed.append((kwargs["input_ids"].numel(), len(self.seen)))
            return forward(*args, **kwargs)

        monkeypatch.setattr(RunningRow, "take", noted)
        monkeypatch.setattr(type(model), "forward", counted)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> Order:
    return Order(monkeypatch, tiny[0])


def test_rows_end_on_their_own_and_give_what_they_would_give_alone(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    metrics = Metrics()
    batcher = Batcher(session, tiny[1], 3, 10, metrics)
    asked = [Asked(tiny[1], number, tokens) for number, tokens in enumerate((20, 130, 70))]
    batcher.submit([item.row for item in asked])
    together = [item.all() for item in asked]
    apart = []
    for number, tokens in enumerate((20, 130, 70)):
        alone = Asked(tiny[1], number, tokens)
        batcher.submit([alone.row])
        apart.append(alone.all())
    assert together == apart
    ends = [events[-1] for events in together]
    assert [end.generated_tokens for end in ends] == [20, 130, 70]
    assert [end.finish_reason for end in ends] == ["length"] * 3
    assert ends[1].cache.peak_tokens == 150
    assert ends[1].cache.compactions
    assert not ends[0].cache.compactions
    assert value(metrics, "dynts_evicted_tokens_total") == 2 * sum(end.cache.evicted_tokens for end in ends)
    assert value(metrics, "dynts_generated_tokens_total") == 2 * 220
    for name, count in (("queue", 6), ("time_to_first_token", 6), ("time_per_token", 2 * (220 - 3))):
        assert value(metrics, f"dynts_{name}_seconds_count") == count
    assert batcher.stop(10)
    assert value(metrics, "dynts_live_kv_tokens") == value(metrics, "dynts_running") == 0
    assert not session.stats


@pytest.mark.parametrize("seed", range(2))
def test_whenever_they_come_they_get_what_generate_gives_alone(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], order: Order, seed: int
) -> None:
    rng = random.Random(seed)
    tokens = [200, *(rng.randint(1, 140) for _ in range(7))]
    asked = [Asked(tiny[1], number, most) for number, most in enumerate(tokens)]
    order.names = {item.row: str(number) for number, item in enumerate(asked)}
    batcher = Batcher(session, tiny[1], 4, 10, Metrics(), prefill_tokens=rng.choice([7, 64, 512]))
    for item, place in zip(asked[1:], rng.sample(range(1, 120), 7), strict=True):
        order.then["0", place] = lambda _, row=item.row: batcher.submit([row])  # type: ignore[misc]
    batcher.submit([asked[0].row])
    together = [item.all() for item in asked]
    assert batcher.stop(10)
    for item, most, (*pieces, end) in zip(asked, tokens, together, strict=True):
        [alone] = answer_questions(session, tiny[1], [("", item.question)], Sampling(most, 0.0))
        assert "".join(piece.text for piece in pieces) == alone.text
        assert end.generated_tokens == alone.stats.generated_tokens
        assert end.cache.compactions == alone.stats.compactions
        assert end.cache.peak_tokens == alone.stats.peak_tokens
        assert (end.finish_reason == "stop") == alone.finished


def test_a_short_request_beside_a_long_one_begins_at_the_next_step(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], order: Order
) -> None:
    batcher = Batcher(session, tiny[1], 2, 10, Metrics())
    long, short = Asked(tiny[1], 0, 60), Asked(tiny[1], 1, 5)
    order.names = {long.row: "long", short.row: "short"}
    order.then["long", 10] = lambda _: batcher.submit([short.row])
    batcher.submit([long.row])
    assert short.all()[-1].generated_tokens == 5
    assert long.all()[-1].generated_tokens == 60
    assert order.seen == ["long"] * 10 + ["short"] + ["long", "short"] * 4 + ["long"] * 46
    assert batcher.stop(10)


def test_long_prompts_stop_running_rows_for_a_piece_at_a_time(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], order: Order
) -> None:
    piece, rows = 16, 4
    batcher = Batcher(session, tiny[1], rows, 10, Metrics(), prefill_tokens=piece)
    runs, short = Asked(tiny[1], 0, 100), Asked(tiny[1], 1, 3)
    long = [Asked(tiny[1], number, 3) for number in (2, 3)]
    short.row.prompt[:] = short.row.prompt[:piece]
    for number, item in enumerate(long):
        item.row.prompt[:] = (item.row.prompt[number:] * 9)[: 6 * piece]
    order.names = {runs.row: "runs", short.row: "short", **{item.row: "long" for item in long}}
    order.then["runs", 10] = lambda _: batcher.submit([*(item.row for item in long), short.row])
    batcher.submit([runs.row])
    for item in (runs, short, *long):
        assert isinstance(item.all()[-1], Ended)
    places = [place for place, name in enumerate(order.seen) if name == "runs"]
    # the short prompt comes third, after a piece of each of the long ones
    assert places.index(order.seen.index("short") + 1) == 12
    assert order.seen.index("long") > places[20]
    # from a token of the running row to its next at most a piece is read, and a token of each row
    waits = [sum(fed for fed, seen in order.fed if a < seen <= b) for a, b in pairwise(places)]
    assert piece < max(waits) <= piece + rows
    assert batcher.stop(10)


def test_a_client_that_hangs_up_frees_its_row_at_the_next_step(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], order: Order
) -> None:
    metrics = Metrics()
    batcher = Batcher(session, tiny[1], 1, 10, metrics)
    gone, waits, never = Asked(tiny[1], 0, 1900), Asked(tiny[1], 1, 5), Asked(tiny[1], 2, 5)
    order.names = {gone.row: "gone", waits.row: "waits"}
    gauges = []

    def look(_: RowToken) -> None:
        gauges.append([value(metrics, f"dynts_{name}") for name in ("running", "waiting", "live_kv_tokens")])

    def hang_up(token: RowToken) -> None:
        look(token)
        assert gauges[-1][2] == token.cached
        batcher.cancel([gone.row, never.row])
        look(token)

    order.then["gone", 10] = hang_up
    order.then["waits", 1] = look
    batcher.submit([gone.row, waits.row, never.row])
    assert isinstance(waits.all()[-1], Ended)
    assert order.seen == ["gone"] * 10 + ["waits"] * 5
    assert gauges == [[1, 2, len(gone.row.prompt) + 9], [0, 1, 0], [1, 0, len(waits.row.prompt)]]
    assert never.told.empty()
    assert batcher.stop(10)
    assert value(metrics, "dynts_generated_tokens_total") == 15


def test_the_cache_takes_what_was_said(session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    batch, sizes = ContinuousBatch(session, 3), []
    for number in range(3):
        asked = Asked(tiny[1], number).row
        batch.add(RowTask(asked.prompt, Sampling(130, 0.0), lambda token: False, pytest.fail))
    while not batch.idle:
        batch.step()
        sizes.append(batch.cache.allocated_bytes if batch.cache is not None else 0)
    assert max(sizes) == cache_bytes(session, 3)


@pytest.mark.parametrize("place", ["forward pass", "draw"])
def test_a_step_that_fails_takes_no_other_with_it(
    session: Session,
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    batcher = Batcher(session, tiny[1], 2, 10, metrics)
    changed, name = (type(tiny[0]), "forward") if place == "forward pass" else (RowSampling, "__call__")
    works, calls = getattr(changed, name), iter(range(10**6))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 10:
            raise RuntimeError("out of luck")
        return works(*args, **kwargs)

    monkeypatch.setattr(changed, name, failing)
    fail, goes_on = [Asked(tiny[1], number, 40) for number in range(2)], Asked(tiny[1], 2, 40)
    batcher.submit([*(item.row for item in fail), goes_on.row])
    for item in fail:
        error = item.all()[-1]
        assert error.status == 500
        assert "luck" not in error.message
    after, alone = goes_on.all(), Asked(tiny[1], 2, 40)
    batcher.submit([alone.row])
    assert after == alone.all()
    assert isinstance(after[-1], Ended)
    assert value(metrics, "dynts_failed_completions_total") == 2
    (record,) = caplog.records  # one for both
    assert "out of luck" in str(record.exc_text)
    assert batcher.stop(10)


def test_a_full_queue_and_an_end(session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    metrics = Metrics()
    batcher = Batcher(session, tiny[1], 1, 2, metrics)
    running = Asked(tiny[1], 0, 1900)
    batcher.submit([running.row])
    running.first()
    waiting = [Asked(tiny[1], number, 5) for number in range(2)]
    batcher.submit([item.row for item in waiting])
    assert value(metrics, "dynts_waiting") == 2
    with pytest.raises(ApiError) as full:
        batcher.submit([Asked(tiny[1]).row])
    assert full.value.status == 429
    assert full.value.headers == {"Retry-After": "5"}
    assert batcher.stop(10)
    for item in (running, *waiting):
        error = item.all()[-1]
        assert isinstance(error, ApiError)
        assert error.status == 503
    with pytest.raises(ApiError, match="shutting down"):
        batcher.submit([Asked(tiny[1]).row])
    assert not batcher.alive


def test_no_thread_is_left(session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    before = threading.active_count()
    assert Batcher(session, tiny[1], 1, 1, Metrics()).stop(10)
    assert threading.active_count() == before
