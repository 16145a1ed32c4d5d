"""The text of a sequence as its tokens come."""

import codecs
from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from dynts.chat.markers import ThinkFormat
from dynts.chat.scanner import spellings
from dynts.chat.written import hidden_tokens


class Spelling:
    """What each token of a model writes, looked up once for all rows.

    Args:
        tokenizer: the model's.
        end_tokens: ids that end a turn.
        format: how the model writes its think markers; None for what the tokenizer tells.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int], format: ThinkFormat | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens
        self._hidden = hidden_tokens(tokenizer, end_tokens, format)
        self._bytes = spellings(tokenizer)

    def of(self, token: int) -> bytes:
        """Return the bytes of a token; none for those that a text leaves out, and for an id without a token."""
        return b"" if token in self._hidden or token >= len(self._bytes) else self._bytes[token]

    def of_first(self, token: int) -> bytes:
        """Return the bytes of a token that begins a text of its own.

        That is without the space that some tokenizers (SentencePiece, words) put before every word and take away where
        a text begins.
        """
        written = self.of(token)
        if written.startswith(b" ") and not str(self.tokenizer.decode([token])).startswith(" "):
            return written[1:]
        return written


class RowText:
    """A row's text as it comes.

    Bytes that are no whole character wait for those that complete it, those that never can become U+FFFD, one for each
    stretch as in every UTF-8 decoder: each token costs the same, whatever came before.

    Args:
        spelling: of the model's tokens.
        continues: whether the text goes on with the prompt's, where the space before its first word counts.
    """

    def __init__(self, spelling: Spelling, continues: bool) -> None:
        self._write = spelling.of if continues else spelling.of_first
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that is complete with this token."""
        written = self._write(token)
        if written:
            self._write = self._spelling.of
        return self._decoder.decode(written)

    def flush(self) -> str:
        """Return what was waited for in vain, once nothing more comes."""
        return self._decoder.decode(b"", final=True)
