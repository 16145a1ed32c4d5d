"""What a checkpoint's generation config says is what plain `generate` does, is overridden with one line, or is
refused."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

import dynts
from command_line import run
from decoding import word_tokenizer
from dynts.chat.options import DEFAULT_CHAT
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.config import Sampling
from dynts.decode import checkpoint
from dynts.decode.answers import answer_questions
from dynts.engines.engine import Completion, Request
from dynts.engines.transformers import TransformersEngine
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.running import Ended, Event, Piece, Row
from dynts.serve.server import bind, serve_session
from dynts.traces.problems import Problem
from scripted import writes
from tiny import tiny_model

QUESTIONS = ["a", "bb ccc", "dddd ee ffff"]
GREEDY = Sampling(40, temperature=0)
ENDS = list(range(40, 60))
"""So many that a random model ends its turn soon."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def loaded() -> PreTrainedModel:
    return tiny_model("llama", vocab_size=256)


@pytest.fixture
def model(loaded: PreTrainedModel) -> PreTrainedModel:
    """With a generation config for a test to change."""
    loaded.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=0)
    checkpoint.say_once.cache_clear()
    return loaded


def change(model: PreTrainedModel, **settings: Any) -> None:
    for name, value in settings.items():
        setattr(model.generation_config, name, value)


def collected(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sampling: Sampling = GREEDY, batch: int = 20
) -> list[Completion]:
    """Of all questions, whose prompts are read together, with padding."""
    engine = TransformersEngine(model, tokenizer, sampling, batch=batch)
    found = engine.generate([Request(Problem(text, text, "1"), 0, 0) for text in QUESTIONS])
    return sorted(found, key=lambda done: QUESTIONS.index(done.request.problem.id))


def plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """What transformers writes, with its own cache, on a prompt alone."""
    prompt = torch.tensor([encode_prompt(tokenizer, chat_prompt(tokenizer, question))])
    mask = torch.ones_like(prompt)
    output = model.generate(prompt, attention_mask=mask, max_new_tokens=40, do_sample=False, tokenizer=tokenizer)
    return output[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"encoder_repetition_penalty": 4.0},
        {"no_repeat_ngram_size": 1},
        {"min_length": 100},
        {"min_new_tokens": 9},
        {"suppress_tokens": ENDS[::2]},
        {"bad_words_ids": [[token] for token in range(120, 190)]},
        {"stop_strings": ["@]", "G/"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_rows_can_follow_they_follow_as_if_they_were_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> None:
    without = [plain(model, tokenizer, question) for question in QUESTIONS]
    change(model, **settings)
    expected = [plain(model, tokenizer, question) for question in QUESTIONS]
    assert expected != without, "this setting was meant to be felt"
    assert [done.generated_ids for done in collected(model, tokenizer)] == expected


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"num_return_sequences": 3}, "num_return_sequences=3"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"use_cache": False}, "use_cache=False"),
        ({"return_dict_in_generate": True, "output_scores": True}, None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_rows_cannot_follow_is_overridden_with_one_line(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: dict[str, Any],
    said: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = [plain(model, tokenizer, question) for question in QUESTIONS]
    change(model, **settings)
    with caplog.at_level(logging.WARNING, "dynts"):
        assert [done.generated_ids for done in collected(model, tokenizer)] == expected
        with dynts.compress(model, "full", tokenizer=tokenizer) as session:
            answers = list(answer_questions(session, tokenizer, [(text, text) for text in QUESTIONS], GREEDY))
    assert [answer.text for answer in answers] == [done.text for done in collected(model, tokenizer)]
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("dynts")]
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]
    assert model.generation_config.use_cache is settings.get("use_cache"), "the model is left as it was"


def row(ids: Sequence[int], told: "SimpleQueue[Event]") -> Row:
    return Row(0, list(ids), GREEDY, (), told.put)


def test_stop_strings_end_rows_in_every_command(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    change(model, stop_strings=["STOP"], eos_token_id=None)
    said = [f"{'x' * size} STOP and more" for size in range(3)]
    scripts = [tokenizer.encode(text) for text in said]
    ends = [text.partition(" and")[0] for text in said]
    with writes(model, scripts[1]):
        assert tokenizer.decode(plain(model, tokenizer, "a")) == ends[1]
        with dynts.compress(model, "full", tokenizer=tokenizer) as session:
            [answer] = answer_questions(session, tokenizer, [("a", "a")], GREEDY)
            told: SimpleQueue[Event] = SimpleQueue()
            batcher = Batcher(session, tokenizer, 1, 1, Metrics())
            batcher.submit([row(tokenizer.encode("ab"), told)])
            text = ""
            while isinstance(event := told.get(timeout=60), Piece):
                text += event.text
            batcher.stop(60)
    assert (answer.text, answer.finished) == (ends[1], True)
    # as in OpenAI's API, a stop string is not part of the text
    assert text == ends[1].removesuffix("STOP")
    assert isinstance(event, Ended)
    assert event.finish_reason == "stop"
    with writes(model, *scripts):
        found = collected(model, tokenizer, batch=1)
    assert [done.text for done in found] == ends
    assert all(done.finished for done in found)


def test_stop_strings_that_transformers_cannot_look_for(model: PreTrainedModel) -> None:
    change(model, stop_strings=["w5 w6"])
    with pytest.raises(dynts.UnsupportedError, match=r"stop_strings=\['w5 w6'\].*generation_config.json"):
        checkpoint.stop_criteria(model, word_tokenizer())


def test_stop_strings_that_are_none(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    before = collected(model, tokenizer)
    change(model, stop_strings=[])
    assert [done.generated_ids for done in collected(model, tokenizer)] == [done.generated_ids for done in before]
    with dynts.compress(model, "full", tokenizer=tokenizer) as session:
        assert len(list(answer_questions(session, tokenizer, [("a", "a")], GREEDY))) == 1
    for wrong in ([5], [""], ["a", None]):
        change(model, stop_strings=wrong)
        with pytest.raises(dynts.UnsupportedError, match=r"stop_strings=.*: each must be a text"):
            checkpoint.check_checkpoint(model)


def test_sampling_settings_without_an_option_are_followed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    greedy = [done.generated_ids for done in collected(model, tokenizer)]
    hot = Sampling(40, temperature=5.0, top_p=1.0, top_k=200)
    assert [done.generated_ids for done in collected(model, tokenizer, hot)] != greedy
    change(model, min_p=1.0)  # nothing but the likeliest token
    assert [done.generated_ids for done in collected(model, tokenizer, hot)] == greedy


def test_guidance_is_refused_before_anything_is_computed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    change(model, guidance_scale=1.5)
    for _ in range(2):
        with pytest.raises(dynts.UnsupportedError, match=r"guidance_scale=1\.5"):
            TransformersEngine(model, tokenizer, GREEDY)
    options: dict[str, Any] = {"name": "m", "sampling": GREEDY, "chat": DEFAULT_CHAT, "api_key": None}
    limits: dict[str, Any] = {
        "max_batch": 1,
        "max_waiting": 1,
        "prefill_tokens": 9,
        "max_body_bytes": 100,
        "drain_seconds": 1,
    }
    with dynts.compress(model, "full", tokenizer=tokenizer) as session, bind("127.0.0.1", 0) as bound:
        with pytest.raises(dynts.UnsupportedError, match=r"guidance_scale=1\.5"):
            serve_session(session, tokenizer, bound, **options, **limits, announce=print)
        with pytest.raises(dynts.UnsupportedError, match=r"guidance_scale=1\.5"):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)


def test_a_call_of_ones_own_is_told_where_beams_come_from(model: PreTrainedModel) -> None:
    with dynts.compress(model, "full") as _:
        with pytest.raises(dynts.UnsupportedError, match=r"beam_search is not supported .* no prompt lookup\)$"):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, num_beams=4)
        change(model, num_beams=4)
        with pytest.raises(dynts.UnsupportedError, match="own generation_config asks for it"):
            model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
        assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, num_beams=1).shape == (1, 5)


def test_a_folder_with_all_of_it(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = ["a", "--model", tmp_path, "--method", "full", "--temperature", 0, "--max-new-tokens", 30, "--json"]
    code, out, _ = run(monkeypatch, capsys, "generate", *words)
    assert code == 0
    before = json.loads(out)
    stop = next(character for character in before["text"] if character.isascii())
    said = {"num_beams": 2, "use_cache": False, "return_dict_in_generate": True, "stop_strings": [stop]}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    code, out, _ = run(monkeypatch, capsys, "generate", *words)
    assert code == 0
    after = json.loads(out)
    assert before["text"].startswith(after["text"])
    assert after["text"].endswith(stop)
    assert after["finished"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", -1.0), ("encoder_repetition_penalty", "x"), ("min_new_tokens", -3), ("min_p", 7.0)],
)
def test_impossible_numbers_are_refused_at_the_start(model: PreTrainedModel, name: str, value: object) -> None:
    change(model, **{name: value})
    with pytest.raises(dynts.UnsupportedError, match=name):
        checkpoint.check_checkpoint(model)
