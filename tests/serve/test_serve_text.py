"""What tokens write, a token at a time: whole characters, spaces, and bytes that are no text."""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dynts.chat.spelling import RowText, Spelling
from dynts.serve.replies import _sent

pytestmark = pytest.mark.quick

END = "<end>"


def sentence_piece() -> PreTrainedTokenizerBase:
    """As in Llama 2, Mistral and Gemma: words with their space, and bytes for what has no token."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "<", "0"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    model = BPE({token: index for index, token in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_end(backend)


def byte_level() -> PreTrainedTokenizerBase:
    """As in Llama 3, Qwen and DeepSeek."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(BPE({**vocabulary, "Ġa": 256}, [("Ġ", "a")]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return _with_end(backend)


def _with_end(backend: Tokenizer) -> PreTrainedTokenizerBase:
    backend.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def write(tokenizer: PreTrainedTokenizerBase, ids: list[int], continues: bool = False) -> list[str]:
    text = RowText(Spelling(tokenizer, {tokenizer.convert_tokens_to_ids(END)}), continues)
    return [*map(text.feed, ids), text.flush()]


@pytest.mark.parametrize("make", [sentence_piece, byte_level])
@pytest.mark.parametrize("text", ["a b ab", "日本 🙂 a", "é", "<0x41>", "a  b\n"])
def test_a_message_is_what_the_tokenizer_decodes(make: object, text: str) -> None:
    tokenizer = make()  # type: ignore[operator]
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = write(tokenizer, [*ids, tokenizer.eos_token_id])
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_any_bytes_at_all_are_decoded_as_utf_8() -> None:
    tokenizer, rng = byte_level(), random.Random(0)
    for _ in range(200):
        ids = [rng.randrange(257) for _ in range(40)]
        assert "".join(write(tokenizer, ids)) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_fail_nothing_and_wait_for_nothing() -> None:
    """`tokenizers.decoders.DecodeStream` raises at the first of these, and takes longer for each that comes."""
    tokenizer = sentence_piece()
    bad = tokenizer.convert_tokens_to_ids("<0x80>")
    pieces = write(tokenizer, [bad] * 1000 + tokenizer.encode("ab", add_special_tokens=False))
    assert "".join(pieces) == "\ufffd" * 1000 + " ab"
    assert pieces[:1000] == ["\ufffd"] * 1000
    first, second, third = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "日".encode())
    assert write(tokenizer, [first, first, second, third, first]) == ["", "\ufffd", "", "日", "", "\ufffd"]


def test_a_text_that_continues_its_prompt_keeps_the_space_between_them() -> None:
    tokenizer = sentence_piece()
    prompt, whole = (tokenizer.encode(text, add_special_tokens=False) for text in ("a b", "a b a"))
    added = whole[len(prompt) :]
    assert "a b" + "".join(write(tokenizer, added, continues=True)) == tokenizer.decode(whole) == "a b a"
    assert "".join(write(tokenizer, added)) == tokenizer.decode(added) == "a"


def test_an_id_without_a_token_and_an_end_token_write_nothing() -> None:
    tokenizer = byte_level()
    assert write(tokenizer, [10**6, tokenizer.eos_token_id]) == ["", "", ""]


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\x85", "日本 é"])
def test_a_streamed_reply_is_one_line_to_every_client(text: str) -> None:
    """Those of huggingface_hub and aiosseclient end lines where `str.splitlines` does."""
    line, empty = _sent({"content": text}).splitlines()
    assert json.loads(line.removeprefix("data: ")) == {"content": text}
    assert not empty
