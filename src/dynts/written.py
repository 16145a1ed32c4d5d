"""The text of what a model wrote: end tokens and other special tokens are left out, think markers are shown."""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer

from dynts.markers import ThinkFormat, find_format


def hidden_tokens(
    tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int] = (), format: ThinkFormat | None = None
) -> frozenset[int]:
    """Ids that a text leaves out: tokens that end a turn and special tokens, but for the think markers.

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
    """The text of generated tokens; see `hidden_tokens` for what is left out."""
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
        """Takes the prompt [1, tokens] first, then one token [1] at a time."""
        if value.dim() > 1 or int(value) not in self.hidden:
            super().put(value)
