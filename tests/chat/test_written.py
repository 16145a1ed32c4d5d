"""The text of what a model wrote is the same wherever it is shown: no end tokens, no special tokens, all think
markers."""

from queue import SimpleQueue

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.chat.written import decode_text, hidden_tokens
from dynts.config import Sampling
from dynts.decode.answers import answer_questions
from dynts.decode.compress import compress
from dynts.engines.engine import Request
from dynts.engines.transformers import TransformersEngine
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.running import Ended, Event, Piece, Row
from dynts.traces.problems import Problem
from scripted import writes
from tiny import tiny_model

WORDS = ["<pad>", "<bos>", "<eos>", "four", "so", "?"]
FLAGGED = ["<end_of_turn>", "<|call|>", "<think>", "</think>"]
"""Special, but without a name; think markers are so in some tokenizers."""
PLAIN_END = "<stop>"
"""Ends the turn by the model's configuration, and the tokenizer does not flag it."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*WORDS, *FLAGGED, PLAIN_END])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    made.add_tokens([AddedToken(token, special=True) for token in FLAGGED], special_tokens=False)
    made.add_tokens([AddedToken(PLAIN_END, special=False)])
    return made


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    model = tiny_model("llama")
    ends = ["<eos>", "<end_of_turn>", "<|call|>", PLAIN_END]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    return model


@pytest.mark.quick
@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>", "<|call|>", PLAIN_END])
def test_every_command_shows_the_same_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tokenizer.encode(f"<think> so <bos> </think> four {end}", add_special_tokens=False)
    expected = "<think> so </think> four"
    sampling = Sampling(20, temperature=0)
    with writes(model, ids):
        with compress(model, "full", tokenizer=tokenizer) as session:
            [answer] = answer_questions(session, tokenizer, [("q", "so ?")], sampling, stream=True)
        [collected] = TransformersEngine(model, tokenizer, sampling).generate(
            [Request(Problem("p", "so ?", "4"), 0, 0)]
        )
    assert capsys.readouterr().out.strip() == expected
    assert answer.text == expected
    assert answer.finished
    assert collected.text == expected
    assert collected.generated_tokens == len(ids)


@pytest.mark.quick
def test_only_markers_are_shown_of_the_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    shown = {"four", "so", "?", "<think>", "</think>", PLAIN_END}
    assert hidden_tokens(tokenizer) == {index for token, index in tokenizer.get_vocab().items() if token not in shown}
    ids = tokenizer.encode(f"so four {PLAIN_END}", add_special_tokens=False)
    assert decode_text(tokenizer, ids) == f"so four {PLAIN_END}"
    assert decode_text(tokenizer, ids, [ids[-1]]) == "so four"


def test_a_server_shows_it_too(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    told: SimpleQueue[Event] = SimpleQueue()
    row = Row(0, tokenizer.encode("so ?"), Sampling(20, temperature=0), (), told.put)
    ids = tokenizer.encode("<think> so </think> four <|call|>", add_special_tokens=False)
    with writes(model, ids), compress(model, "full", tokenizer=tokenizer) as session:
        batcher = Batcher(session, tokenizer, 1, 1, Metrics())
        batcher.submit([row])
        text = ""
        while isinstance(event := told.get(timeout=30), Piece):
            text += event.text
        batcher.stop(30)
    assert text == "<think> so </think> four"
    assert isinstance(event, Ended)
    assert (event.finish_reason, event.generated_tokens) == ("stop", len(ids))
