from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dynts.chat.markers import think_markers
from dynts.chat.options import ChatOptions
from dynts.chat.prompts import chat_prompt
from dynts.errors import DyntsError
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import Trace
from tiny_traces import make_row

TRACE = Trace(**make_row(3))


@pytest.fixture(scope="module")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without think tokens that merges the marker's edges with the text around them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>"]
    )
    backend.train_from_iterator(["so.</th", "ink>\nyes", ".</", ">\n"] * 50, trainer)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<eos>{% endfor %}"
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    clone = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", eos_token="<eos>")
    clone.chat_template = template
    return clone


@pytest.mark.quick
def test_spans_hold_the_question_the_thinking_the_marker_and_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_trace(tokenizer, TRACE)
    bounds = [0, tokens.question_end, tokens.thinking_end, tokens.answer_start, len(tokens.ids)]
    question, thinking, marker, answer = (tokens.ids[a:b] for a, b in pairwise(bounds))
    before, after = TRACE.response.split("</think>")
    assert question == tuple(
        tokenizer.encode(
            chat_prompt(tokenizer, TRACE.question, ChatOptions(open_thinking=True)), add_special_tokens=False
        )
    )
    assert thinking == tuple(tokenizer.encode(before, add_special_tokens=False))
    assert marker == (tokenizer.convert_tokens_to_ids("</think>"),)
    assert answer == (*tokenizer.encode(after, add_special_tokens=False), tokenizer.eos_token_id)


def test_a_token_that_merges_marker_and_text_is_neither_thinking_nor_answer(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokens = tokenize_trace(merging_tokenizer, Trace("1", "q", "so.</think>\nyes", "1"))
    thinking, marker, answer = (
        merging_tokenizer.decode(tokens.ids[start:end])
        for start, end in (
            (tokens.question_end, tokens.thinking_end),
            (tokens.thinking_end, tokens.answer_start),
            (tokens.answer_start, len(tokens.ids)),
        )
    )
    assert thinking + marker + answer == "so.</think>\nyes<eos>"
    assert "</think>" in marker
    assert len(marker) > len("</think>"), "this tokenizer was meant to merge the marker with its neighbours"
    # the ids of a marker on its own do not occur, so searching for them would have failed
    markers = think_markers(merging_tokenizer)
    assert markers is not None
    windows = (tokens.ids[i : i + len(markers.end)] for i in range(len(tokens.ids)))
    assert markers.end not in windows


def test_characters_of_several_bytes_and_tokens(merging_tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenize_trace(merging_tokenizer, Trace("1", "q", "日本 π</think>é", "1"))
    assert merging_tokenizer.decode(tokens.ids[tokens.question_end : tokens.thinking_end]) == "日本 π"


def test_a_template_that_opens_the_thinking_gets_no_second_marker(tokenizer: PreTrainedTokenizerFast) -> None:
    opening = with_template(tokenizer, tokenizer.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}")
    opened, plain = (tokenize_trace(either, TRACE) for either in (opening, tokenizer))
    assert opened.ids == plain.ids
    assert opened.ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert opened.ids[: opened.question_end].count(tokenizer.convert_tokens_to_ids("<think>")) == 1


def test_the_turn_ends_as_the_template_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    clone = with_template(tokenizer, tokenizer.chat_template.replace("{{ eos_token }}", "<end_of_turn>"))
    clone.add_tokens(["<end_of_turn>"], special_tokens=True)
    assert tokenize_trace(clone, TRACE).ids[-1] == clone.convert_tokens_to_ids("<end_of_turn>")
    assert tokenize_trace(tokenizer, TRACE).ids[-1] == tokenizer.eos_token_id


def test_a_failing_template_is_reported(tokenizer: PreTrainedTokenizerFast) -> None:
    clone = with_template(tokenizer, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DyntsError, match="roles must alternate"):
        tokenize_trace(clone, TRACE)


@pytest.mark.quick
def test_markers_are_one_id_or_several_or_none(
    tokenizer: PreTrainedTokenizerFast, merging_tokenizer: PreTrainedTokenizerFast
) -> None:
    found = think_markers(tokenizer)
    assert found is not None
    assert found.end == (tokenizer.convert_tokens_to_ids("</think>"),)
    several = think_markers(merging_tokenizer)
    assert several is not None
    assert len(several.end) > 1
    assert think_markers(tokenizer, start="<unheard>", end="</unheard>") is None
