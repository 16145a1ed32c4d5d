"""Small tokenizers that cut think markers up, as large models' do, and a real one. Nothing is downloaded."""

import struct
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared_data import R1_TOKENIZER

TEMPLATE = "{% for message in messages %}{{ message['role'] }}:{{ message['content'] }}<eos>{% endfor %}"
_PIECES = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
"""How Llama 3 and Qwen 2.5 cut a text before merging: line breaks go with the signs before them."""
_SAMPLES = ["think", " think", "thought", "</", " </", ".</", ">\n\n", ">\n", ">", "[/", "]\n", "analysis", "|>", "<|"]


def byte_level(added: Sequence[str] = (), template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which `>` and the line breaks after it are one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<eos>", "<pad>"]
    )
    backend.train_from_iterator(_SAMPLES * 50, trainer)
    return _finished(backend, added, template)


def byte_fallback(added: Sequence[str] = (), template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: `▁` for a space, and bytes for what has no token."""
    tokens = ["<unk>", "<eos>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [
        "▁",
        *"abcdefghijklmnopqrstuvwxyz0123456789.<>/\n",
        "th",
        "in",
        "thin",
        "think",
        "▁</",
        "</",
        ">\n",
        ".<",
    ]
    merges = [("t", "h"), ("i", "n"), ("th", "in"), ("thin", "k"), ("<", "/"), ("▁", "</"), (">", "\n"), (".", "<")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(backend, added, template)


def real_header() -> dict[str, Any]:
    """The keys and values of the real GGUF header.

    Its layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    data, at = R1_TOKENIZER.read_bytes(), 24
    plain = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}

    def number(code: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return found

    def value(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            size = number("Q")
            at += size
            return data[at - size : at].decode()
        if kind == 9:
            kind, count = number("I"), number("Q")
            return [value(kind) for _ in range(count)]
        return number(plain[kind])

    return {value(8): value(number("I")) for _ in range(struct.unpack_from("<Q", data, 16)[0])}


def real_tokenizer(added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Qwen 2.5's vocabulary and merges, which have no think markers, with further tokens."""
    header = real_header()
    ordinary = [
        token
        for token, kind in zip(header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"], strict=True)
        if kind == 1
    ]
    merges = [tuple(merge.split(" ")) for merge in header["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(ordinary)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return _finished(backend, added, TEMPLATE)


def _finished(backend: Tokenizer, added: Sequence[str], template: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_tokens(list(added), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer
