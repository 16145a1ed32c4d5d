"""The token ids that open and close a model's thinking."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

START = "<think>"
END = "</think>"


@dataclass(frozen=True, slots=True)
class ThinkMarkers:
    """Token ids of the opening and closing marker: one id where the tokenizer has it as a token, else several."""

    start: tuple[int, ...]
    end: tuple[int, ...]


def think_markers(tokenizer: PreTrainedTokenizerBase, start: str = START, end: str = END) -> ThinkMarkers | None:
    """Token ids of the thinking markers, or None if the tokenizer cannot write them.

    A marker of several ids may be merged with the text around it (".</" can be one token), so the ids find a marker
    that a model writes on a line of its own, but not every one in a text: to split a finished text, use character
    offsets (`dynts.training.tokens`).
    """
    start_ids, end_ids = _ids(tokenizer, start), _ids(tokenizer, end)
    if not start_ids or not end_ids:
        return None
    return ThinkMarkers(start_ids, end_ids)


def _ids(tokenizer: PreTrainedTokenizerBase, marker: str) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode(marker, add_special_tokens=False))
    return () if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids else ids
