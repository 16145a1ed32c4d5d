"""The parts of the server, in process."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from dynts.cache.lengths import CacheUse
from dynts.chat.markers import KNOWN_FORMATS, ThinkFormat
from dynts.chat.spelling import Spelling
from dynts.chat.streaming import StopStrings, undecided
from dynts.chat.thinking import ReasoningSplit
from dynts.config import Sampling
from dynts.decode.sampling import RowSampling, draws_of
from dynts.decode.tasks import RowToken
from dynts.serve.metrics import Metrics
from dynts.serve.running import Row, RunningRow

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
    assert (use.evicted_tokens, use.peak_tokens, use.cached_tokens) == (13, 13, 6)
    assert use.compactions == [(2, 12, 6), (9, 13, 6)]
    # 11 and 12, then 7, then 8 to 12, then 13
    assert use.lengths().mean == (11 + 12 + 7 + 8 + 9 + 10 + 11 + 12 + 13) / 9


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
