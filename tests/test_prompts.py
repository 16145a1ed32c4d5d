"""A prompt's ids: special tokens where the text is plain, once where a chat template writes them; the same in every command."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from command_line import run
from dynts.collect.engine import Request
from dynts.collect.problems import Problem
from dynts.collect.transformers_engine import TransformersEngine
from dynts.decode.answer import Sampling
from dynts.prompts import INSTRUCTION, chat_prompt, encode_prompt
from dynts.training.tokens import tokenize_trace
from dynts.training.traces import Trace
from tiny import tiny_model

QUESTION = "1 + 1 = ?"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Single characters, and BOS before every text, as Gemma's and Llama's tokenizers put it there."""
    characters = sorted({*QUESTION, *INSTRUCTION, *"<think></think>\n"})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return tiny_model("llama")


@pytest.mark.quick
def test_plain_text_gets_the_special_tokens_and_a_rendered_template_does_not_get_them_twice(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = chat_prompt(tokenizer, QUESTION)
    assert encode_prompt(tokenizer, text) == tokenizer(text)["input_ids"]
    assert encode_prompt(tokenizer, text).count(1) == 1
    tokenizer.chat_template = TEMPLATE
    try:
        rendered = encode_prompt(tokenizer, chat_prompt(tokenizer, QUESTION))
        message = [{"role": "user", "content": f"{QUESTION}\n{INSTRUCTION}"}]
        assert rendered == tokenizer.apply_chat_template(message, return_dict=False)
        assert rendered.count(1) == 1
        assert encode_prompt(tokenizer, QUESTION, raw=True) == tokenizer(QUESTION)["input_ids"]
    finally:
        tokenizer.chat_template = None


def test_commands_read_the_same_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = tokenizer(f"{QUESTION}\n{INSTRUCTION}\n")["input_ids"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = [QUESTION, "--model", tmp_path, "--method", "full", "--max-new-tokens", 1, "--json"]
    code, out, err = run(monkeypatch, capsys, "generate", *words)
    assert code == 0, err
    assert json.loads(out)["prompt_tokens"] == len(expected)
    engine = TransformersEngine(model, tokenizer, Sampling(1))
    [done] = engine.generate([Request(Problem("p", QUESTION, "2"), 0, 0)])
    assert done.prompt_tokens == len(expected)
    labelled = tokenize_trace(tokenizer, Trace("t", QUESTION, "1</think>2", "2"))
    assert list(labelled.ids[: len(expected)]) == expected
    assert labelled.ids.count(1) == 1
