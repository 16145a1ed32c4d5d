"""Where thinking ends, against the decoded text, on tokenizers that cut the markers up."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import dynts
from decoding import random_predictor
from dynts.cache.interface import CACHE
from dynts.chat.markers import KNOWN_FORMATS, ThinkFormat, ThinkMarkers, find_format
from dynts.chat.scanner import ThinkScanner, think_scanner
from dynts.errors import DyntsError
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import Trace
from made_tokenizers import byte_fallback, byte_level, real_tokenizer
from shared_data import R1_TOKENIZER
from tiny import tiny_model

TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "marker tokens": lambda: byte_level(["<think>", "</think>", "<|channel|>", "<|message|>", "<|end|>", "<|start|>"]),
}
PARTS = [
    "<think>",
    "</think>",
    "</think",
    ">\n\n",
    "<",
    "</",
    "think",
    " ",
    "\n",
    "a.",
    "so",
    "日本",
    "◁",
    "é",
    "<eos>",
]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def read(tokenizer: PreTrainedTokenizerFast, ids: list[int], format: ThinkFormat) -> list[bool]:
    """Whether each token comes after the thinking, by decoding all that stands before it."""
    texts = [str(tokenizer.decode(ids[:count])) for count in range(len(ids))]
    ends = [(text.rfind(format.end) + len(format.end), text.rfind(format.start) + len(format.start)) for text in texts]
    return [format.end in text and closed > opened for text, (closed, opened) in zip(texts, ends, strict=True)]


@pytest.mark.quick
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from(PARTS), max_size=14).map("".join), min_size=1, max_size=3), data=st.data()
)
def test_ends_are_those_of_the_decoded_text(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], data: st.DataObject
) -> None:
    format = data.draw(st.sampled_from([ThinkFormat(), ThinkFormat("<", ">\n\n"), KNOWN_FORMATS[2]]))
    scanner = think_scanner(tokenizer, format)
    assert scanner is not None
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    width = max(map(len, rows))
    found = scanner.after_thinking(torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows]))
    for row, marks in zip(rows, found.tolist(), strict=True):
        assert marks[: len(row)] == read(tokenizer, row, format)
        first = scanner.find_end(row)
        whole = str(tokenizer.decode(row))
        assert (first is None) == (format.end not in whole)
        if first is not None:
            # the shortest beginning that holds the marker, and the longest end that does
            begun, done = first
            assert format.end in str(tokenizer.decode(row[:done]))
            assert format.end not in str(tokenizer.decode(row[: done - 1]))
            assert format.end in str(tokenizer.decode(row[begun:done]))
            assert format.end not in str(tokenizer.decode(row[begun + 1 : done]))


@pytest.mark.quick
@given(
    spellings=st.lists(st.text("ab", max_size=4).map(str.encode), min_size=1, max_size=6),
    markers=st.tuples(st.text("ab", max_size=4), st.text("ab", min_size=1, max_size=5)).filter(
        lambda pair: pair[0] != pair[1]
    ),
    ids=st.lists(st.integers(-1, 7), max_size=20),
)
def test_tokens_without_bytes_and_unknown_ones(
    spellings: list[bytes], markers: tuple[str, str], ids: list[int]
) -> None:
    start, end = (marker.encode() for marker in markers)
    found = ThinkScanner(start, end, spellings).after_thinking(torch.tensor([ids], dtype=torch.int64))[0].tolist()
    closed, text, expected = False, b"", []
    for token in ids:
        expected.append(closed)
        for byte in spellings[token] if 0 <= token < len(spellings) else b"?":
            text += bytes([byte])
            closed = text.endswith(end) or (closed and not (start and text.endswith(start)))
    assert found == expected


@pytest.mark.quick
def test_ids_alone_are_found_as_they_are() -> None:
    scanner = ThinkScanner.of_ids(ThinkMarkers((3,), (5, 6)))
    assert scanner.after_thinking(torch.tensor([[5, 6, 9, 3, 5, 7, 6, 5, 6, 0]])).tolist() == [
        [False, False, True, True, False, False, False, False, False, True]
    ]
    assert scanner.find_end([1, 5, 5, 6, 2]) == (2, 4)


def test_answers_are_protected_and_labelled_as_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    """The thinking ends with `>` and two line breaks, one token where the tokenizer merges them."""
    thinking, answer = "<think>a. so b. so c. so d. so e. so f.", "\n\nso 7. 8. 9."
    trace = Trace("1", "7", f"{thinking}</think>{answer}", "1")
    tokens = tokenize_trace(tokenizer, trace)
    bounds = [tokens.question_end, tokens.thinking_end, tokens.answer_start, len(tokens.ids)]
    parts = [str(tokenizer.decode(tokens.ids[start:end])) for start, end in pairwise(bounds)]
    assert "</think>" in parts[1]
    assert parts[2].rstrip().endswith("9.<eos>")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    ids = torch.tensor([tokens.ids])
    budget = len(tokens.ids) - 4
    config = dynts.CompressionConfig(budget=budget, local_window=2, retention_ratio=0.5)
    with dynts.compress(model, "dynts", config, random_predictor(), tokenizer=tokenizer, record=True) as session:
        cache = session.new_cache()
        decoder = model.get_decoder()
        decoder(input_ids=ids[:, : tokens.question_end], **{CACHE: cache}, use_cache=True)
        for place in range(tokens.question_end, len(tokens.ids) - 1):
            decoder(input_ids=ids[:, place : place + 1], **{CACHE: cache}, use_cache=True)
        (kept,) = session.kept_positions
    answers = range(tokens.answer_start, budget - 2)
    assert len(answers) > 3
    assert set(answers) <= set(kept[0].tolist())
    assert cache.history.answer(cache.occupancy.contents.turns)[0].nonzero()[:, 0].tolist() == list(
        range(tokens.answer_start, len(tokens.ids) - 1)
    )


@pytest.mark.quick
def test_a_marker_that_cannot_be_written_leaves_the_word_to_the_predictor() -> None:
    recorded = random_predictor(think=(2, 3))
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    model = tiny_model("llama")
    for markers, expected in ((None, 3), (ThinkMarkers((2,), (4,)), 4)):
        with dynts.compress(model, predictor=recorded, tokenizer=words, markers=markers) as session:
            assert session.scanner is not None
            assert session.scanner.find_end([1, 4, 3, 4]) == ((2, 3) if expected == 3 else (1, 2))
    with dynts.compress(model, predictor=random_predictor(), tokenizer=words) as session:
        assert session.scanner is None


@pytest.mark.quick
def test_markers_as_text_need_a_tokenizer() -> None:
    model = tiny_model("llama")
    with pytest.raises(DyntsError, match="need the tokenizer that writes them"):
        dynts.compress(model, "dynts-random", markers=ThinkFormat())
    assert dynts.compress(model, "dynts-random", markers=ThinkMarkers((2,), (3,))).scanner is not None
    recorded = random_predictor(think=(2, 3))
    assert dynts.compress(model, predictor=recorded, markers=ThinkFormat()).scanner is not None


@pytest.mark.skipif(not R1_TOKENIZER.exists(), reason=f"{R1_TOKENIZER.name} is not there")
@pytest.mark.parametrize("added", [(), ("<think>", "</think>")])
def test_the_vocabulary_of_qwen_with_and_without_marker_tokens(added: tuple[str, ...]) -> None:
    tokenizer = real_tokenizer(added)
    ids = tokenizer.encode("<think>\nIs 1 < 2? Yes.\n</think>\n\nThe answer is 2.", add_special_tokens=False)
    if not added:
        assert ">\n\n" in map(tokenizer.decode, ids), "the line breaks are one token with the marker's end"
    scanner = think_scanner(tokenizer)
    assert scanner is not None
    assert scanner.after_thinking(torch.tensor([ids]))[0].tolist() == read(tokenizer, ids, ThinkFormat())
    tokens = tokenize_trace(tokenizer, Trace("1", "q", "Is 1 < 2?\n</think>\n\nThe answer is 2.", "2"))
    assert tokenizer.decode(tokens.ids[tokens.answer_start :]).strip() == "The answer is 2.<eos>"


def template_of(format: ThinkFormat) -> str:
    return "{% for m in messages %}{{ m.content.split('" + format.end + "')[-1] }}{% endfor %}"


@pytest.mark.quick
@pytest.mark.parametrize("format", KNOWN_FORMATS)
def test_markers_are_chosen_by_vocabulary_and_template(format: ThinkFormat) -> None:
    tokens = [format.start, format.end]
    if "channel" in format.start:
        tokens = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>"]
    assert find_format(byte_level(tokens)) == format
    assert find_format(byte_level(template=template_of(format))) == format
    # reserved tokens of another model say less than the template
    assert find_format(byte_level(["<think>", "</think>", "[THINK]", "[/THINK]"], template_of(format))) == format
    assert find_format(byte_level(), end=format.end) == find_format(byte_level(), format.start) == format


@pytest.mark.quick
def test_markers_of_the_users_own() -> None:
    assert find_format(byte_level()) == ThinkFormat("<think>", "</think>")
    assert find_format(byte_level(["[THINK]", "[/THINK]"]), "(", ")") == ThinkFormat("(", ")")
    with pytest.raises(DyntsError, match=r"marker '\(' is not known here: give both"):
        find_format(byte_level(), "(")
    with pytest.raises(DyntsError, match="two different texts"):
        find_format(byte_level(), "(", "(")
