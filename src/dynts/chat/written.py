"""The text of what a model wrote, without special tokens; and a watch on whether it ends its thinking."""

import threading
from collections.abc import Callable, Collection, Sequence

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from dynts.chat.markers import ThinkFormat, find_format


def hidden_tokens(
    tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int] = (), format: ThinkFormat | None = None
) -> frozenset[int]:
    """Return the ids that a text leaves out: tokens that end a turn and special tokens, but for the think markers.

    Special are those that the tokenizer has a name for ("eos_token") and those that it only flags, such as Gemma's
    <end_of_turn>, which `all_special_ids` leaves out.

    Args:
        tokenizer: the model's.
        end_tokens: what ends a turn, see `dynts.models.end_tokens`; not every tokenizer flags it as special.
        format: the think markers; None for those that the tokenizer tells.
    """
    flagged = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    format = format or find_format(tokenizer)
    markers = {
        token for marker in (format.start, format.end) for token in tokenizer.encode(marker, add_special_tokens=False)
    } - {tokenizer.unk_token_id}
    return frozenset({*tokenizer.all_special_ids, *flagged} - markers) | frozenset(end_tokens)


def decode_text(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    end_tokens: Collection[int] = (),
    format: ThinkFormat | None = None,
) -> str:
    """Return the text of generated tokens.

    Args:
        tokenizer: the model's.
        ids: the tokens.
        end_tokens: see `hidden_tokens` for what is left out.
        format: likewise.
    """
    hidden = hidden_tokens(tokenizer, end_tokens, format)
    return str(tokenizer.decode([token for token in ids if token not in hidden], skip_special_tokens=False))


class TextWriter(TextStreamer):
    """Writes the text of one sequence to standard output as it comes, without the prompt; see `hidden_tokens`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int] = (), format: ThinkFormat | None = None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.hidden = hidden_tokens(tokenizer, end_tokens, format)

    def put(self, value: torch.Tensor) -> None:
        """Write the prompt [1, tokens] first, then one token [1] at a time."""
        if value.dim() > 1 or int(value) not in self.hidden:
            super().put(value)


FIRST = 8
"""Finished samples after which it is said."""


class ClosingWatch:
    """Says once, and early, that the first finished samples closed no thinking; from any thread.

    Args:
        say: how to say it.
        advice: what to do about it.

    Attributes:
        said: whether it was said.
    """

    def __init__(self, say: Callable[[str], object], advice: str) -> None:
        self.say = say
        self.advice = advice
        self.finished = 0
        self.closed = False
        self.said = False
        self._lock = threading.Lock()

    def note(self, finished: bool, closed: bool) -> None:
        """Count a sample.

        Args:
            finished: whether the model ended its turn.
            closed: whether its thinking was closed.
        """
        with self._lock:
            self.closed = self.closed or closed
            self.finished += finished
            if self.finished == FIRST:
                self._tell()

    def conclude(self) -> None:
        """Say what there is to say when there are no more samples."""
        with self._lock:
            if 0 < self.finished < FIRST:
                self._tell()
                self.finished = FIRST

    def _tell(self) -> None:
        if not self.closed:
            self.said = True
            self.say(
                f"WARNING: none of the first {self.finished} answers that the model finished closes its thinking, so "
                f"nothing in them counts as an answer: {self.advice}"
            )
