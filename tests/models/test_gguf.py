"""Models from GGUF files: the tokenizer is the file's, token by token; what is incomplete is refused for what it is."""

import json
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, TokenType
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from command_line import run
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.config import ModelSource
from dynts.errors import DyntsError
from dynts.models import load_model, load_tokenizer
from dynts.models.gguf import GgufFile
from gguf_files import BOS, CONTROL, EOS, MARKERS, TOKENS, tokenizer_keys, write_gguf
from shared_data import R1_TOKENIZER
from tiny import tiny_model

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("qwen2", vocab_size=len(TOKENS), bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)


def check_token_by_token(tokenizer: PreTrainedTokenizerBase, tokens: list[str], kinds: list[int]) -> None:
    """The tokenizer against the vocabulary of the file."""
    assert len(tokenizer) == len(tokens)
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokens)))) == tokens
    texts = tokenizer.batch_decode([[index] for index in range(len(tokens))])
    added = tokenizer.added_tokens_decoder
    for index, (token, kind, text) in enumerate(zip(tokens, kinds, texts, strict=True)):
        if kind == TokenType.NORMAL:
            assert text == bytes(BYTES[character] for character in token).decode(errors="replace")
            assert index not in added
        elif kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            assert text == token
            assert tokenizer.encode(f"a{token}b", add_special_tokens=False)[1:-1] == [index]
            assert added[index].special == (kind == TokenType.CONTROL)


def merged(text: str, tokens: list[str], merges: list[str]) -> list[int]:
    """Ids of one piece of text, by the merges, slowly."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    ids = {token: index for index, token in enumerate(tokens)}
    spelling = bytes_to_unicode()
    parts = [spelling[byte] for byte in text.encode()]
    while pairs := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
        place = min(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return [ids[part] for part in parts]


@pytest.mark.quick
def test_the_tokenizer_is_the_files(tmp_path: Path, model: PreTrainedModel) -> None:
    keys = tokenizer_keys()
    write_gguf(tmp_path / "tiny.gguf", model, keys)
    tokenizer = load_tokenizer(ModelSource(str(tmp_path), gguf_file="tiny.gguf"))
    check_token_by_token(tokenizer, keys["tokens"], keys["token_type"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, EOS, EOS)
    # Qwen's split: digits one by one, a line break goes with the punctuation before it
    pieces = ["sum", " the", " ", "1", "2", " >\n", "\n", "ü"]
    expected = [token for piece in pieces for token in merged(piece, keys["tokens"], keys["merges"])]
    assert tokenizer.encode("".join(pieces)) == [BOS, *expected]
    prompt = encode_prompt(tokenizer, chat_prompt(tokenizer, "the"))
    assert prompt[:2] == [BOS, TOKENS.index(CONTROL[1])]
    assert prompt[-1] == TOKENS.index(CONTROL[2])


@pytest.mark.quick
@pytest.mark.skipif(not R1_TOKENIZER.is_file(), reason="no shared data")
def test_the_tokenizer_of_r1_distill_qwen_is_the_files() -> None:
    entries = GgufFile.read(R1_TOKENIZER).metadata
    tokenizer = load_tokenizer(ModelSource(str(R1_TOKENIZER.parent), gguf_file=R1_TOKENIZER.name))
    tokens = entries["tokenizer.ggml.tokens"]
    check_token_by_token(tokenizer, tokens, entries["tokenizer.ggml.token_type"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (151646, 151643, 151654)
    pieces = ["So", " the", " answer", " is", " ", "1", "2", ".\n\n", "(a", "'s", " ", " 你好"]
    expected = [token for piece in pieces for token in merged(piece, tokens, entries["tokenizer.ggml.merges"])]
    assert tokenizer.encode("".join(pieces)) == [151646, *expected]


def test_a_tokenizer_that_splits_text_otherwise_is_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    # transformers splits as GPT-2 where it does not know the name, which keeps line breaks apart from what is before
    # them
    merges = [f"{sign} Ċ" for sign in "!#$%&()*+,-./:;=?@[]^_{|}~"]
    tokens = [*TOKENS, *(merge.replace(" ", "") for merge in merges)]
    keys = tokenizer_keys() | {"tokens": tokens, "merges": [*tokenizer_keys()["merges"], *merges], "pre": "unheard-of"}
    keys["token_type"] = [*keys["token_type"], *[int(TokenType.NORMAL)] * len(merges)]
    write_gguf(tmp_path / "tiny.gguf", model, keys)
    with pytest.raises(DyntsError, match=r"tiny\.gguf \(gpt2, unheard-of\) is not the model's: .*tokenizer\.json"):
        load_tokenizer(ModelSource(str(tmp_path), gguf_file="tiny.gguf"))


@pytest.mark.quick
def test_a_gguf_model_is_the_model(
    tmp_path: Path, model: PreTrainedModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    turn_end = TOKENS.index(CONTROL[1])
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer_keys() | {"eot_token_id": turn_end})
    loaded, _ = load_model(ModelSource(str(tmp_path), gguf_file="tiny.gguf"))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert loaded.dtype == torch.float32  # the file's own
    assert loaded.generation_config.eos_token_id == [EOS, turn_end]
    capfd.readouterr()
    caplog.set_level(logging.INFO, "dynts")
    write_gguf(tmp_path / "quantised.gguf", model, tokenizer_keys(), kind=GGMLQuantizationType.Q8_0)
    loaded, _ = load_model(ModelSource(str(tmp_path), gguf_file="quantised.gguf"))
    dtype = str(loaded.dtype).removeprefix("torch.")
    assert re.search(
        rf"^the weights of quantised\.gguf \(Q8_0; 0\.0 GB\) are unpacked to {dtype} and take 0\.0 GB",
        caplog.messages[-1],
    )
    assert "stay quantized" not in capfd.readouterr().err
    assert load_model(ModelSource(str(tmp_path), gguf_file="quantised.gguf", dtype="float16"))[0].dtype == torch.float16


def test_incomplete_files_are_refused(tmp_path: Path, model: PreTrainedModel) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", model, tokenizer_keys()).read_bytes()
    for size in (6, 30, 2000, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(DyntsError, match=rf"^\S+cut\.gguf has been cut: it has {size:,} bytes, and"):
            load_model(ModelSource(str(tmp_path), gguf_file="cut.gguf"))
    write_gguf(tmp_path / "first.gguf", model, tokenizer_keys(), without="layers.1.", parts=2)
    with pytest.raises(
        DyntsError, match=r"^\S+first\.gguf is part 1 of 2 of a split GGUF file.*llama-gguf-split --merge"
    ):
        load_model(ModelSource(str(tmp_path), gguf_file="first.gguf"))
    (tmp_path / "tiny-00002-of-00003.gguf").write_bytes(whole)
    with pytest.raises(DyntsError, match="part 2 of 3"):
        load_model(ModelSource(str(tmp_path), gguf_file="tiny-00002-of-00003.gguf"))
    write_gguf(tmp_path / "lacking.gguf", model, tokenizer_keys(), without="layers.1.")
    with pytest.raises(DyntsError, match=r"lacking\.gguf\) lacks model\.layers\.1\.\S+, .* more: weights of the model"):
        load_model(ModelSource(str(tmp_path), gguf_file="lacking.gguf"))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"tokens": None}, r"lacks tokenizer\.ggml\.tokens: put the model's own tokenizer\.json"),
        ({"token_type": None}, r"lacks tokenizer\.ggml\.token_type"),
        ({"merges": None}, r"lacks tokenizer\.ggml\.merges"),
        (
            {"token_type": tokenizer_keys()["token_type"][:-5]},
            f"has {len(TOKENS)} tokens and {len(TOKENS) - 5} token types",
        ),
        (
            {"token_type": [*tokenizer_keys()["token_type"], 3]},
            f"has {len(TOKENS)} tokens and {len(TOKENS) + 1} token types",
        ),
    ],
)
def test_tokenizers_that_are_not_whole_are_refused(
    tmp_path: Path, model: PreTrainedModel, keys: dict[str, list[int] | None], problem: str
) -> None:
    found = {name: value for name, value in (tokenizer_keys() | keys).items() if value is not None}
    write_gguf(tmp_path / "tiny.gguf", model, found)
    with pytest.raises(DyntsError, match=problem):
        load_tokenizer(ModelSource(str(tmp_path), gguf_file="tiny.gguf"))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("scaled", "named"), [({"rope_scaling": 4.0}, "qwen2.rope.scaling."), ({"rope_freqs": True}, "rope_freqs.weight")]
)
def test_scaled_positions_are_refused(
    tmp_path: Path, model: PreTrainedModel, scaled: dict[str, Any], named: str
) -> None:
    """transformers would load the model, and let it write with other positions than it was trained with."""
    write_gguf(tmp_path / "scaled.gguf", model, tokenizer_keys(), **scaled)
    with pytest.raises(DyntsError, match=rf"scaled\.gguf scales rotary positions \({named}.*Load the checkpoint"):
        load_model(ModelSource(str(tmp_path), gguf_file="scaled.gguf"))


@pytest.mark.quick
def test_plan_reads_a_header(
    tmp_path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "header.gguf", model, tokenizer_keys(), without=".")
    write_gguf(tmp_path / "tied.gguf", model, tokenizer_keys(), without="lm_head")
    options = ("--budget", 3000, "--json")
    code, out, err = run(monkeypatch, capsys, "plan", "--model", tmp_path, "--gguf-file", "header.gguf", *options)
    assert code == 0
    assert "header.gguf lists no tensors: taken as a model whose embedding and output head are two matrices" in err
    planned = json.loads(out)
    assert planned["dtype"] == "bfloat16"
    assert planned["shape"]["parameters"] == model.num_parameters()
    code, out, err = run(monkeypatch, capsys, "plan", "--model", tmp_path, "--gguf-file", "tied.gguf", *options)
    assert json.loads(out)["shape"]["parameters"] == model.num_parameters() - model.lm_head.weight.numel()
    assert "lists no tensors" not in err
    with pytest.raises(DyntsError, match="holds no weights"):
        load_model(ModelSource(str(tmp_path), gguf_file="header.gguf"))


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_generate_and_label(
    real: bool,
    tmp_path: Path,
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = tokenizer_keys()
    if real:
        if not R1_TOKENIZER.is_file():
            pytest.skip("no shared data")
        entries = GgufFile.read(R1_TOKENIZER).metadata
        keys = {
            name.removeprefix("tokenizer.").removeprefix("ggml."): value
            for name, value in entries.items()
            if "tokenizer." in name
        }
        model = tiny_model("qwen2", vocab_size=len(keys["tokens"]), bos_token_id=None, pad_token_id=151654)
    write_gguf(tmp_path / "tiny.gguf", model, keys)
    source = ("--model", tmp_path, "--gguf-file", "tiny.gguf", "--device", "cpu")
    budget = ("--budget", 150, "--local-window", 40)
    code, out, _ = run(
        monkeypatch, capsys, "generate", *source, *budget, "--method", "question-window", "--max-new-tokens", 200,
        "--temperature", 0, "--json", "What is the sum?",
    )  # fmt: skip
    assert code == 0
    answer = json.loads(out)
    assert answer["compactions"]
    assert answer["peak_tokens"] <= 150
    trace = {
        "id": "1",
        "question": "What is the sum?",
        "answer": "5",
        "response": f"{MARKERS[0]}\nthe sum\n{MARKERS[1]}\n\n\\boxed{{5}}",
    }
    (tmp_path / "traces.jsonl").write_text(json.dumps(trace) + "\n")
    code, _, err = run(
        monkeypatch, capsys, "label", *source, "--traces", tmp_path / "traces.jsonl", "--out", tmp_path / "shards"
    )
    assert code == 0, err
