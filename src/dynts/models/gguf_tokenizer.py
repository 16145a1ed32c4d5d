"""The tokenizer that a GGUF file describes.

transformers builds one too, but not always the model's (5.16 to 5.24): it respells control tokens with characters such
as `｜`, gives bos and eos ids outside the vocabulary, cuts `<think>` into pieces, or splits text as another does,
with nothing said. So byte-level tokenizers, which nearly all reasoning models have, are built here; any tokenizer is
compared with the file.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dynts.errors import DyntsError
from dynts.models.gguf import GgufFile

# token types of the format
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_NAMED = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# how text is split before merging, by `tokenizer.ggml.pre` (the names are llama.cpp's): most digits in a piece
_DIGITS = {"qwen2": 1, "deepseek-r1-qwen": 1, "llama-bpe": 3, "llama3": 3, "llama-v3": 3}

_FIX = "put the model's own tokenizer.json and tokenizer_config.json beside the file"
_SAMPLE = 2000
_UNREACHABLE = 0.05
"""Share of a vocabulary that its tokenizer may fail to write: 1% for Qwen's, 16% where its text is split as GPT-2's."""


def knows(file: GgufFile) -> bool:
    """Return whether `build_tokenizer` can build this file's tokenizer."""
    return file.metadata.get("tokenizer.ggml.model") == "gpt2" and file.metadata.get("tokenizer.ggml.pre") in _DIGITS


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """Build the byte-level tokenizer of a file, with the ids and the kinds of tokens that the file gives.

    Args:
        file: for which `knows` holds.

    Raises:
        DyntsError: vocabulary, token types and merges do not belong together, or one of them is missing.
    """
    entries = file.metadata
    for name in ("tokens", "token_type", "merges"):
        if f"tokenizer.ggml.{name}" not in entries:
            raise DyntsError(f"{file.path} lacks tokenizer.ggml.{name}: {_FIX}")
    tokens, kinds = entries["tokenizer.ggml.tokens"], entries["tokenizer.ggml.token_type"]
    if len(tokens) != len(kinds):
        raise DyntsError(f"{file.path} has {len(tokens)} tokens and {len(kinds)} token types: {_FIX}")
    llama = _DIGITS[entries["tokenizer.ggml.pre"]] == 3
    try:
        model = BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in entries["tokenizer.ggml.merges"]],
            ignore_merges=llama,
        )
    except Exception as error:  # tokenizers raises nothing more specific
        raise DyntsError(f"vocabulary and merges of {file.path} do not belong together: {error}") from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT % _DIGITS[entries["tokenizer.ggml.pre"]]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(tokens[index], normalized=False, special=kind == _CONTROL)
            for index, kind in enumerate(kinds)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    named = {
        name: tokens[index] for name, role in _NAMED.items() for index in file.token_ids(role) if index < len(tokens)
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(file.path.parent),  # transformers looks for a configuration there
        chat_template=entries.get("tokenizer.chat_template"),
        add_bos_token=entries.get("tokenizer.ggml.add_bos_token", llama),
        add_eos_token=entries.get("tokenizer.ggml.add_eos_token", False),
        clean_up_tokenization_spaces=False,
        **named,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, file: GgufFile) -> None:
    """Compare a tokenizer with the vocabulary of the file that it was read from.

    Args:
        tokenizer: as it is.
        file: with the vocabulary.

    Raises:
        DyntsError: ids, special tokens or the way that text is cut into tokens are not the file's.
    """
    entries = file.metadata
    tokens = entries.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise DyntsError(f"{file.path} holds no tokenizer")
    problem = (
        _wrong_ids(tokenizer, file, tokens)
        or _wrong_control_tokens(tokenizer, tokens, entries.get("tokenizer.ggml.token_type", []))
        or _wrong_pieces(tokenizer, entries.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens))
    )
    if problem:
        kind = f"{entries.get('tokenizer.ggml.model')}, {entries.get('tokenizer.ggml.pre')}"
        raise DyntsError(
            f"the tokenizer that transformers makes of {file.path} ({kind}) is not the model's: {problem}; "
            f"{_FIX}, or try another version of transformers"
        )


def _wrong_ids(tokenizer: PreTrainedTokenizerBase, file: GgufFile, tokens: list[str]) -> str | None:
    spelled: Any = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for index, (wanted, found) in enumerate(zip(tokens, spelled, strict=True)):
        # SentencePiece's own spelling of spaces, and Gemma's of a tab
        if found not in (wanted, wanted.replace(" ", "▁"), "\t" if wanted == "<0x09>" else wanted):
            return f"token {index} is {found!r}, not {wanted!r}"
    for name, role in _NAMED.items():
        token = getattr(tokenizer, f"{name}_id")
        if token is not None and token >= len(tokens):
            return f"its {name} is {token}, outside the vocabulary of {len(tokens)}"
        for stated in file.token_ids(role):
            if token != stated:
                return f"its {name} is {token}, not {stated}"
    return None


def _wrong_control_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str], kinds: list[int]) -> str | None:
    whole = [index for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    for index, ids in zip(whole, _encode(tokenizer, [tokens[index] for index in whole]), strict=True):
        if index not in ids:
            return f"it cuts {tokens[index]!r} into {len(ids)} tokens"
    return None


def _wrong_pieces(tokenizer: PreTrainedTokenizerBase, kinds: list[int]) -> str | None:
    normal = [index for index, kind in enumerate(kinds) if kind == _NORMAL]
    sample = normal[:: max(1, len(normal) // _SAMPLE)]
    texts = tokenizer.batch_decode([[index] for index in sample])
    # a token that is part of a character has no text; a line break keeps SentencePiece from putting a space in front
    texts = [text for text in texts if "\ufffd" not in text and text.strip()]
    (start,) = _encode(tokenizer, ["\n"])
    cut = sum(len(ids) > len(start) + 1 for ids in _encode(tokenizer, [f"\n{text}" for text in texts]))
    if cut > _UNREACHABLE * len(texts):
        return f"it cuts {cut} of {len(texts)} tokens of the vocabulary into several"
    return None


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
