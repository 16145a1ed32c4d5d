"""Rows that join and leave: every sequence is what it is alone, by an independent reference."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from against_reference import CONFIG
from decoding import predictor_for, random_tokens
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.joining import take_rows
from dynts.config import Sampling
from dynts.decode import prefixes
from dynts.decode.compress import compress
from dynts.decode.tasks import RowTask
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import DynTS
from joined_rows import Joining, Watched, check_joined, run_joining, some_stream
from method_table import CASES, EVERY
from tiny import VOCAB_SIZE, tiny_model


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_every_sequence_is_what_it_is_alone(architecture: str, name: str) -> None:
    model, stream = tiny_model(architecture), some_stream()
    batch = run_joining(model, name, stream, rows=3, prefill_tokens=8)
    for each in stream:
        check_joined(model, name, each)
    assert max(batch.seen) == 3
    assert batch.cache is None, "nobody holds slots when nobody generates"


ARRIVALS = st.lists(
    st.builds(
        lambda prompt, seed, arrives, length, leaves: Joining(random_tokens(prompt, seed), arrives, length, leaves),
        st.integers(1, 17),
        st.integers(0, 1000),
        st.integers(0, 60),
        st.integers(1, 70),
        st.none() | st.integers(1, 70),
    ),
    min_size=1,
    max_size=8,
)


@given(
    name=st.sampled_from(EVERY),
    architecture=st.sampled_from(["llama", "gemma2", "gpt_oss"]),
    stream=ARRIVALS,
    rows=st.integers(1, 4),
    prefill_tokens=st.sampled_from([1, 5, 64]),
)
@settings(max_examples=25, deadline=None)
def test_whatever_comes_when(
    name: str, architecture: str, stream: list[Joining], rows: int, prefill_tokens: int
) -> None:
    model = tiny_model(architecture)
    run_joining(model, name, stream, rows, prefill_tokens)
    for each in stream:
        check_joined(model, name, each)


def drive(batch: Watched, *tasks: RowTask, steps: int = 10_000) -> None:
    for task in tasks:
        batch.add(task)
    while steps and not batch.idle:
        batch.step()
        steps -= 1


def test_what_rows_take_over_keeps_nothing_alive() -> None:
    model, stream, method = tiny_model("llama"), some_stream(), CASES["dynts"].method
    with compress(model, method, CONFIG, predictor_for(method), record=True) as session:
        batch = Watched(session, 2, 64, stream)
        drive(batch, stream[0].task(), stream[1].task(), steps=12)
        drive(batch, stream[5].task(), steps=1)  # where the second was
        assert batch.cache is not None
        scores = cast(DynTS, batch.cache.method).scores.values
    assert not scores.requires_grad, "their history would be kept as long as rows follow each other"


class Broken(RuntimeError):
    """What a model may raise."""


def test_a_pass_that_fails_fails_the_rows_that_it_was_for() -> None:
    model, stream = tiny_model("llama"), some_stream()
    with compress(model, "window", CONFIG, record=True) as session:
        batch = Watched(session, 3, 8, stream)
        forward, broken = batch._forward, {"width": 14}

        def fails(cache: BudgetCache, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            if ids.shape[1] in broken.values():
                raise Broken
            return forward(cache, ids, mask)

        batch._forward = fails  # type: ignore[method-assign]
        long = Joining([5] * 16, 0, 30)
        batch.reader.at_once, batch.joining = 14, [*stream, long]
        drive(batch, stream[0].task(), long.task())
        assert [type(error) for error in long.failed] == [Broken]
        check_joined(model, "window", stream[0])
        # a decode step takes all rows with it, and none that comes later
        broken["width"] = 1
        drive(batch, stream[1].task(), stream[2].task())
        assert [len(each.failed) for each in stream[1:3]] == [1, 1]
        assert [len(each.tokens) for each in stream[1:3]] == [1, 1]
        assert batch.free == 3
        broken.clear()
        drive(batch, stream[5].task())
        check_joined(model, "window", stream[5])


@pytest.mark.parametrize(("prompt", "said"), [([], "empty"), ([3, VOCAB_SIZE], "0 to 63"), ([-1, 3], "id -1")])
def test_a_prompt_that_no_model_can_read_is_refused(prompt: list[int], said: str) -> None:
    with compress(tiny_model("llama"), "full") as session:
        batch = Watched(session, 3, 64, [])
        with pytest.raises(DyntsError, match=said):
            batch.add(Joining(prompt, 0, 3).task())
        assert batch.idle


def test_a_prompt_that_the_budget_has_no_room_for_is_refused() -> None:
    model, stream = tiny_model("llama"), some_stream()
    with compress(model, "question-window", CONFIG, record=True) as session:
        batch, long = Watched(session, 3, 64, stream), Joining([5] * 30, 0, 3)
        with pytest.raises(DyntsError, match="budget"):
            batch.add(long.task())
        drive(batch, stream[0].task())
    check_joined(model, "question-window", stream[0])


@pytest.mark.parametrize("name", ["window", "h2o", "dynts-all"])
def test_what_a_row_without_numbers_leaves_harms_nobody(name: str) -> None:
    model, stream = tiny_model("llama"), some_stream()
    with compress(model, CASES[name].method, CONFIG, predictor_for(name), record=True) as session:
        batch = Watched(session, 2, 64, stream)
        drive(batch, stream[0].task(), stream[4].task(), steps=4)
        assert batch.cache is not None
        for layer in batch.cache.budget_layers:
            layer.keys[1] = layer.values[1] = torch.nan
        batch.step()
        assert stream[4].numbers == [True] * 5 + [False]
        drive(batch, stream[5].task())
    for each in (stream[0], stream[5]):
        check_joined(model, name, each)


def test_each_row_has_settings_of_its_own() -> None:
    model = tiny_model("qwen3")
    some = [Sampling(9, 0.0, seed=1), Sampling(25, 1.0, 0.9, 50, seed=2), Sampling(40, 2.0, 1.0, 5, seed=3)]
    prompts = [random_tokens(length, length) for length in (4, 9, 6)]

    def tokens(rows: int) -> list[list[int]]:
        streams = [
            Joining(prompt, 2 * number, 99, sampling=sampling)
            for number, (prompt, sampling) in enumerate(zip(prompts, some, strict=True))
        ]
        run_joining(model, "window", streams, rows, 64)
        return [each.tokens for each in streams]

    assert tokens(3) == tokens(1)
    assert list(map(len, tokens(3))) == [9, 25, 40], "nobody gets more than it may"


def test_a_row_that_nobody_waits_for_is_given_up_before_the_next_step() -> None:
    model, stream = tiny_model("llama"), some_stream()
    with compress(model, "window", CONFIG, record=True) as session:
        batch = Watched(session, 2, 4, stream)
        first, second = stream[0].task(), stream[2].task()
        drive(batch, first, second, steps=3)
        assert (batch.free, batch.seen[-1]) == (0, 1), "the second is still being read"
        second.cancelled = True
        assert batch.free == 1
        drive(batch, steps=2)
        first.cancelled = True
        assert batch.idle
        batch.step()
        assert batch.cache is None
    assert (len(stream[0].tokens), len(stream[2].tokens)) == (4, 0)


@pytest.mark.parametrize("name", ["full", "dynts, native", "dynts-all", "h2o", "snapkv", "rkv, native"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_prompts_begin_with_alike_is_read_once(
    monkeypatch: pytest.MonkeyPatch, architecture: str, name: str
) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 4)
    model, system = tiny_model(architecture), random_tokens(11, 3)
    ends = [
        random_tokens(5, 1),
        random_tokens(2, 2),
        [*random_tokens(2, 2), 9],
        random_tokens(1, 5),
        random_tokens(5, 1),
    ]
    stream = [Joining([*system, *end], 4 * number, 40) for number, end in enumerate(ends)]
    batch = run_joining(model, name, stream, rows=3, prefill_tokens=6)
    read = [sum(sizes) for sizes in batch.read.values()]
    assert read == [16, 13, 3, 1, 5], "the second prompt finds out what is shared, all others copy it"
    for each in stream:
        check_joined(model, name, each)


def test_a_prompt_that_many_have_at_once_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 4)
    model, prompt = tiny_model("llama"), random_tokens(16, 3)
    stream = [Joining(random_tokens(14, 1), 0, 9), *(Joining(list(prompt), 0, 9) for _ in range(4))]
    batch = run_joining(model, "window", stream, rows=5, prefill_tokens=6)
    assert sorted(sum(sizes) for sizes in batch.read.values()) == [1, 1, 14, 16, 16]
    for each in stream:
        check_joined(model, "window", each)


def test_a_conversation_of_several_turns_is_not_taken_over() -> None:
    model = tiny_model("llama")
    with compress(model, "window", CONFIG) as session:
        out = model.generate(torch.tensor([[9, 8, 7]]), max_new_tokens=4, return_dict_in_generate=True)
        more = torch.cat([out.sequences, torch.tensor([[5, 6]])], dim=1)
        out = model.generate(more, max_new_tokens=4, return_dict_in_generate=True, **{CACHE: out[CACHE]})
        with pytest.raises(UnsupportedError, match="several turns"):
            take_rows(session.new_cache(), [(out[CACHE], 0)], most=1)
