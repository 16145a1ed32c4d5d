"""The parts of the server, in process."""

import queue
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dynts.chat.markers import KNOWN_FORMATS, ThinkFormat
from dynts.chat.prompts import chat_prompt
from dynts.chat.streaming import StopStrings, undecided
from dynts.chat.thinking import ReasoningSplit
from dynts.config import CompressionConfig, Sampling
from dynts.decode.compress import Session, compress
from dynts.decode.sampling import RowSampling, draws_of
from dynts.decode.tasks import RowToken
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError
from dynts.serve.running import CacheUse, Ended, Piece, Row, RunningRow, Spelling
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.task import HELD_OUT, make_problem

WHOLE = "<think>so 1 < 2 </thin </think>\n\nthe <think> answer </think> is 3"


def cut(text: str, seed: int) -> list[str]:
    """The text in pieces of 1 to 4 characters."""
    rng, pieces = random.Random(seed), []
    while text:
        size = rng.randint(1, 4)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


@pytest.mark.parametrize(
    ("text", "thinks", "reasoning", "content"),
    [
        (WHOLE, None, "so 1 < 2 </thin ", "\n\nthe <think> answer </think> is 3"),
        (" \n" + WHOLE, None, "so 1 < 2 </thin ", "\n\nthe <think> answer </think> is 3"),
        ("so 2</think>3", True, "so 2", "3"),
        ("so 2</thi", True, "so 2</thi", ""),
        ("no thinking", None, "", "no thinking"),
        ("  no thinking", None, "", "  no thinking"),
        ("<thing>", None, "", "<thing>"),
        ("<thi", None, "", "<thi"),
        ("a <think> b </think>", None, "", "a <think> b </think>"),
        ("<think></think>", None, "", ""),
        ("", True, "", ""),
        ("", None, "", ""),
        ("\n", None, "", "\n"),
        ("so </think> 3", False, "", "so </think> 3"),
    ],
)
def test_thinking_and_answer_are_told_apart_however_the_text_is_cut(
    text: str, thinks: bool | None, reasoning: str, content: str
) -> None:
    for format in KNOWN_FORMATS:
        written, *expected = (
            part.replace("<think>", format.start).replace("</think>", format.end) for part in (text, reasoning, content)
        )
        assert list(ReasoningSplit(thinks, format).whole(written)) == expected
        for seed in range(30):
            split = ReasoningSplit(thinks, format)
            parts = [split.feed(piece) for piece in cut(written, seed)] + [split.flush()]
            assert ["".join(part.reasoning for part in parts), "".join(part.content for part in parts)] == expected


def test_text_is_held_back_only_while_it_may_be_a_marker() -> None:
    split = ReasoningSplit(True, ThinkFormat())
    assert split.feed("a <").reasoning == "a "
    assert split.feed("/think").reasoning == ""
    assert split.feed("er").reasoning == "</thinker"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two t"), "one "),
        ("one two three", ("four",), "one two three"),
        ("aab", ("ab",), "a"),
        ("abababc", ("ababc",), "ab"),
        ("abc", ("abcd", "bc"), "a"),
        ("ends with tw", ("two",), "ends with tw"),
        ("", ("a",), ""),
        ("plain", (), "plain"),
    ],
)
def test_stop_strings_however_the_text_is_cut(text: str, stops: tuple[str, ...], expected: str) -> None:
    for seed in range(30):
        scanner, out = StopStrings(stops), ""
        for piece in cut(text, seed):
            out += scanner.feed(piece)
            assert expected.startswith(out)
            if scanner.found:
                break
        assert scanner.found == (expected != text)
        assert out + scanner.flush() == expected


def test_undecided() -> None:
    assert undecided("abc", ["cd", "bcx", "zzz"]) == 2
    assert undecided("abc", ["abcd"]) == 3
    assert undecided("abc", ["d"]) == 0
    assert undecided("", ["d"]) == 0


def test_what_a_cache_did_for_a_row() -> None:
    use = CacheUse()
    for cached, fed in ((10, 10), (11, 11), (6, 12), (7, 13), (12, 18), (6, 19)):
        use.observe(cached, fed)
    assert (use.compactions, use.evicted_tokens, use.peak_tokens, use.cached_tokens) == (2, 13, 13, 6)


def test_rows_have_sampling_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(1, 50, generator=generator) for _ in range(20)]
    some = [
        Sampling(20, 0.0, seed=1),
        Sampling(20, 1.0, 0.9, 50, seed=2),
        Sampling(9, 2.0, 1.0, 5, seed=3),
        Sampling(20, 1.0, 0.9, 50, seed=4),
    ]

    def draw(samplings: list[Sampling], count: int) -> list[list[int]]:
        processor, draws = RowSampling(samplings, torch.device("cpu")), [draws_of(sampling) for sampling in samplings]
        drawn = [
            processor(scores.repeat(len(samplings), 1), [own[step] for own in draws])
            for step, scores in enumerate(steps[:count])
        ]
        return torch.stack(drawn, dim=1).tolist()

    together = draw(some, 9)
    assert together == [draw([sampling], 9)[0] for sampling in some]
    assert together[0] == [int(scores.argmax()) for scores in steps[:9]]
    assert together[1] != together[3]
    assert draw([replace(some[1], seed=4)], 9)[0] == together[3]


def test_tokens_that_are_parts_of_characters_and_markers() -> None:
    characters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({character: number for number, character in enumerate(characters)}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<stop>")
    texts = ("<think>é 🙂</think> ja 日本", "stop här, bitte 🙂")
    ids = [tokenizer.encode(text) for text in texts]
    told: list[list[Any]] = [[], []]
    spelling = Spelling(tokenizer, frozenset([tokenizer.eos_token_id]))
    for index, stop in enumerate(("zz", "är, b")):
        row = RunningRow(Row(index, [1], Sampling(100), (stop,), told[index].append), spelling, Metrics())
        tokens = iter([*ids[index], tokenizer.eos_token_id])
        while not row.take(RowToken(next(tokens), failed=False, cached=6, fed=6 + 2 * index)):
            pass
    assert ["".join(piece.text for piece in events[:-1]) for events in told] == [texts[0], "stop h"]
    assert [events[-1].finish_reason for events in told] == ["stop", "stop"]
    assert told[0][-1].generated_tokens == len(ids[0]) + 1
    assert told[1][-1].generated_tokens == len("stop här, b".encode())
    assert told[1][-1].cache.evicted_tokens == 2
    assert not any("\ufffd" in piece.text for piece in told[0][:-1])


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
        problem = make_problem(HELD_OUT[number], steps=range(4, 5))
        prompt = tokenizer.encode(chat_prompt(tokenizer, problem.question), add_special_tokens=False)
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
    assert ends[1].cache.compactions > 0 == ends[0].cache.compactions
    assert value(metrics, "dynts_evicted_tokens_total") == 2 * sum(end.cache.evicted_tokens for end in ends)
    assert value(metrics, "dynts_generated_tokens_total") == 2 * 220
    assert batcher.stop(10)
    assert value(metrics, "dynts_live_kv_tokens") == value(metrics, "dynts_running") == 0
    assert not session.stats


def test_a_cancelled_row_ends_and_a_batch_without_rows_stops(
    session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    metrics = Metrics()
    batcher = Batcher(session, tiny[1], 2, 10, metrics)
    short, long = Asked(tiny[1], 0, 100), Asked(tiny[1], 1, 1900)
    batcher.submit([short.row, long.row])
    assert isinstance(long.first(), Piece)
    waits = Asked(tiny[1], 2, 5)
    batcher.submit([waits.row])
    batcher.cancel([long.row])
    assert isinstance(short.all()[-1], Ended)
    assert isinstance(waits.all()[-1], Ended)
    assert value(metrics, "dynts_generated_tokens_total") < 400
    gone = Asked(tiny[1], 3, 1900)
    batcher.submit([gone.row])
    assert isinstance(gone.first(), Piece)
    batcher.cancel([gone.row])
    after = Asked(tiny[1], 4, 3)
    batcher.submit([after.row])
    assert isinstance(after.all()[-1], Ended)
    assert batcher.stop(10)
    assert value(metrics, "dynts_generated_tokens_total") < 800


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


def test_a_batch_that_fails_takes_no_other_with_it(
    session: Session,
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batcher = Batcher(session, tiny[1], 2, 10, Metrics())
    forward = type(tiny[0]).forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(tiny[0]), "forward", failing)
    asked = Asked(tiny[1])
    batcher.submit([asked.row])
    error = asked.all()[-1]
    assert error.status == 500
    assert "luck" not in error.message
    assert "out of luck" in caplog.text
    monkeypatch.setattr(type(tiny[0]), "forward", forward)
    again = Asked(tiny[1], tokens=3)
    batcher.submit([again.row])
    assert isinstance(again.all()[-1], Ended)
    assert batcher.stop(10)


def test_no_thread_is_left(session: Session, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    before = threading.active_count()
    assert Batcher(session, tiny[1], 1, 1, Metrics()).stop(10)
    assert threading.active_count() == before
