"""How models write the beginning and the end of their thinking: as text, and as token ids."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynts.errors import DyntsError, check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START = "<think>"
END = "</think>"


@dataclass(frozen=True, slots=True)
class ThinkMarkers:
    """Token ids of the opening and closing marker: one id where the tokenizer has it as a token, else several."""

    start: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ThinkFormat:
    """How a model writes its think markers, as text; a marker may be several tokens.

    Args:
        start: opens the thinking.
        end: closes it.

    Raises:
        DyntsError: a marker is empty or no text, or both are the same.
    """

    start: str = START
    end: str = END

    def __post_init__(self) -> None:
        if not self.start.strip() or not self.end.strip() or self.start == self.end:
            raise DyntsError(f"think markers must be two different texts, got {self.start!r} and {self.end!r}")
        check_text("think markers", self.start + self.end)


KNOWN_FORMATS = (
    ThinkFormat(START, END),  # DeepSeek-R1, Qwen3, EXAONE 4, ...
    ThinkFormat("[THINK]", "[/THINK]"),  # Magistral
    ThinkFormat("◁think▷", "◁/think▷"),  # Kimi
    ThinkFormat("<seed:think>", "</seed:think>"),  # Seed-OSS
    ThinkFormat("<thought>", "</thought>"),  # EXAONE Deep
    ThinkFormat(  # gpt-oss
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"
    ),
)


def think_markers(tokenizer: "PreTrainedTokenizerBase", start: str = START, end: str = END) -> ThinkMarkers | None:
    """Return the token ids of the think markers, or None if the tokenizer cannot write them.

    A marker of several ids may be merged with the text around it (".</" can be one token), so the ids find a marker
    that a model writes on a line of its own, but not every one in a text: `dynts.chat.scanner` finds them all.

    Args:
        tokenizer: the model's.
        start: the opening marker.
        end: the closing one.
    """
    start_ids, end_ids = _ids(tokenizer, start), _ids(tokenizer, end)
    if not start_ids or not end_ids:
        return None
    return ThinkMarkers(start_ids, end_ids)


def find_format(tokenizer: "PreTrainedTokenizerBase", start: str | None = None, end: str | None = None) -> ThinkFormat:
    """Return how a model writes its think markers.

    Of those that are known, the ones that its chat template speaks of, then those that its vocabulary holds, else
    `<think>` and `</think>`.

    Args:
        tokenizer: the model's.
        start: the opening marker, where the user knows it.
        end: the closing one, likewise.

    Raises:
        DyntsError: one of them is given alone, and its partner is not known.
    """
    template = str(tokenizer.chat_template or "")

    def evidence(item: ThinkFormat) -> tuple[bool, bool]:
        return item.start in template or item.end in template, _holds(tokenizer, item.start, item.end)

    return max(matching_formats(start, end), key=evidence)  # the first of equals


def matching_formats(start: str | None, end: str | None) -> list[ThinkFormat]:
    """Return the formats with these markers: of those that are known where one is None, `<think>` first.

    Args:
        start: the opening marker.
        end: the closing one.

    Raises:
        DyntsError: one of them is given alone, and its partner is not known.
    """
    if start is not None and end is not None:
        return [ThinkFormat(start, end)]
    known = [item for item in KNOWN_FORMATS if start in (None, item.start) and end in (None, item.end)]
    if not known:
        given = end if start is None else start
        raise DyntsError(f"the think marker {given!r} is not known here: give both --think-start and --think-end")
    return known


def _holds(tokenizer: "PreTrainedTokenizerBase", *markers: str) -> bool:
    """Return whether each marker is a token, or, of one made of control tokens and words, its control tokens are."""
    wanted = [token for marker in markers for token in re.findall(r"<\|\w+\|>", marker) or [marker]]
    return not {None, tokenizer.unk_token_id} & set(map(tokenizer.convert_tokens_to_ids, wanted))


def _ids(tokenizer: "PreTrainedTokenizerBase", marker: str) -> tuple[int, ...]:
    ids = tuple(tokenizer.encode(marker, add_special_tokens=False))
    return () if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids else ids
