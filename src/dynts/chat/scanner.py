"""Where thinking begins and ends in token ids, however the markers are cut into tokens.

A marker that is no token of its own is written in pieces that merge with the text around it: after `</think`, Llama 3
and Qwen2.5 write `>` and the line breaks as one token. So markers are looked for in the bytes that tokens stand for.
"""

import functools
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dynts.chat.markers import ThinkFormat, ThinkMarkers, find_format, think_markers

Table = npt.NDArray[Any]

_NOTHING, _OPENED, _CLOSED = 0, 1, 2
_OTHERS = re.compile(b"\0+")
_UNKNOWN = b"\xff"
"""Stands for tokens that nobody knows: no UTF-8 text holds this byte."""


class ThinkScanner:
    """Finds the markers in token ids.

    A finite automaton reads bytes, its state being the beginning of a marker that was read last. Made once is what each
    token does to it, from every state. Its state depends on no more bytes than a marker has, so it is known for all
    tokens of a sequence after that many look-ups of the whole sequence at a time, wherever the tensors are and without
    asking the host.

    Args:
        start: bytes of the opening marker; empty for none.
        end: bytes of the closing marker.
        spellings: what each token writes, by id; tokens that write nothing leave everything as it is.
    """

    def __init__(self, start: bytes, end: bytes, spellings: Sequence[bytes]) -> None:
        self.end = end
        self._spellings = spellings
        symbols = bytes(sorted({*start, *end}))
        classes = bytes(symbols.find(byte) + 1 for byte in range(256))  # 0: in no marker
        tokens = [_OTHERS.sub(b"\0", spelling.translate(classes)) for spelling in (*spellings, _UNKNOWN)]
        # tokens that mean the same to the automaton share a column
        columns = {read: column for column, read in enumerate(dict.fromkeys(tokens))}
        states, step, event = _automaton(start.translate(classes), end.translate(classes), len(symbols) + 1)
        step, event = _run(step, event, list(columns))
        self._reach = max(len(states[state]) for state in _reachable(step))
        self._tables = (
            torch.tensor([columns[read] for read in tokens]),
            torch.tensor([bool(read) for read in tokens]),
            torch.from_numpy(np.ascontiguousarray(step, dtype=np.int16)),
            torch.from_numpy(np.ascontiguousarray(event)),
        )
        self._on_device = functools.cache(lambda device: tuple(table.to(device) for table in self._tables))

    @classmethod
    def of_ids(cls, markers: ThinkMarkers) -> "ThinkScanner":
        """Return a scanner that finds just those ids, where no more is known of the tokens than that."""
        code = {token: index.to_bytes() for index, token in enumerate(dict.fromkeys((*markers.start, *markers.end)))}
        spellings = [code.get(token, _UNKNOWN) for token in range(max(code, default=0) + 1)]
        return cls(
            b"".join(map(code.__getitem__, markers.start)), b"".join(map(code.__getitem__, markers.end)), spellings
        )

    def after_thinking(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return where the latest marker completed before a token closes the thinking: bool [batch, n].

        Args:
            tokens: int [batch, n], ids; -1 where unknown.
        """
        columns, writes, step, event = self._on_device(tokens.device)
        unknown = len(columns) - 1
        tokens = torch.where((tokens >= 0) & (tokens < unknown), tokens, unknown).long()
        column, width = columns[tokens], step.shape[1]
        # places count from 1: place 0 is what comes before all tokens
        before = _from_zero(_latest(writes[tokens]))[:, :-1]  # the latest token before each one that writes something
        state = torch.zeros_like(tokens)
        for _ in range(self._reach):
            state = _from_zero(step.view(-1)[state * width + column].long()).gather(1, before)
        found = event.view(-1)[state * width + column]
        closed = _from_zero(found == _CLOSED).gather(1, _latest(found != _NOTHING))
        return _from_zero(closed)[:, :-1]

    def find_end(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Return where the first closing marker is: its first token, and the one after its last; None without one."""
        pieces = [self._spellings[token] if 0 <= token < len(self._spellings) else _UNKNOWN for token in tokens]
        at = b"".join(pieces).find(self.end)
        if at < 0:
            return None
        ends = list(accumulate(map(len, pieces)))
        first, last = at, at + len(self.end) - 1
        return (
            next(index for index, end in enumerate(ends) if end > first),
            next(index for index, end in enumerate(ends) if end > last) + 1,
        )


@functools.lru_cache(maxsize=4)
def _scanner(tokenizer: PreTrainedTokenizerBase, size: int, format: ThinkFormat) -> ThinkScanner | None:
    scanner = ThinkScanner(format.start.encode(), format.end.encode(), spellings(tokenizer))
    if scanner.find_end(tokenizer.encode(format.end, add_special_tokens=False)) is not None:
        return scanner
    # tokens that do not spell what they stand for can still be known by their ids
    markers = think_markers(tokenizer, format.start, format.end)
    return None if markers is None else ThinkScanner.of_ids(markers)


def think_scanner(tokenizer: PreTrainedTokenizerBase, format: ThinkFormat | None = None) -> ThinkScanner | None:
    """Return what finds a model's think markers in its tokens; None where its tokenizer cannot write the closing one.

    Args:
        tokenizer: the model's.
        format: its markers; None for those that `dynts.chat.markers.find_format` finds.
    """
    return _scanner(tokenizer, len(tokenizer), format or find_format(tokenizer))


def scanner_of(
    tokenizer: PreTrainedTokenizerBase | None, markers: ThinkFormat | ThinkMarkers | None, recorded: ThinkMarkers | None
) -> ThinkScanner | None:
    """Return what finds the think markers, by what is known of them; None if nothing is.

    Args:
        tokenizer: the model's, if there is one.
        markers: as the user gives them.
        recorded: in a predictor, where neither tells.
    """
    if isinstance(markers, ThinkMarkers):
        return ThinkScanner.of_ids(markers)
    found = None if tokenizer is None else think_scanner(tokenizer, markers)
    return ThinkScanner.of_ids(recorded) if found is None and recorded is not None else found


def spellings(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes that each token writes within a text, by its id.

    They are known of byte-level BPE, of SentencePiece with or without bytes for what it has no token for, and of plain
    words. An id without a token writes a byte that no text holds.
    """

    def write(*tokens: str) -> str:
        return tokenizer.convert_tokens_to_string(["x", *tokens])

    byte_level, bytes_apart = write("Ġ") == "x ", write("<0x41>") == "xA"
    space, between = write("▁x") == "x x", b" " if write("x") == "x x" else b""
    vocabulary = tokenizer.get_vocab()
    found = [_UNKNOWN] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        if byte_level:
            found[index] = _byte_level(token)
        elif bytes_apart and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[index] = bytes.fromhex(token[3:5])
        else:
            found[index] = between + (token.replace("▁", " ") if space else token).encode(errors="replace")
    return found


def _byte_level(token: str) -> bytes:
    """Return the bytes that GPT-2's alphabet stands for; a token with other characters (an added one) is itself."""
    try:
        return token.translate(_byte_alphabet()).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode(errors="replace")


@functools.cache
def _byte_alphabet() -> dict[int, int]:
    """Return a map from GPT-2's alphabet to bytes, and from other Latin-1 characters to what is not Latin-1."""
    alphabet = {ord(character): byte for byte, character in bytes_to_unicode().items()}
    return {character: ord("\uffff") for character in range(256)} | alphabet


def _latest(flags: torch.Tensor) -> torch.Tensor:
    """Return the number of the latest flag at or before each place, from 1 on, 0 for none: int64 [batch, n]."""
    number = torch.arange(1, flags.shape[1] + 1, device=flags.device)
    return torch.where(flags, number, 0).cummax(dim=1).values


def _from_zero(values: torch.Tensor) -> torch.Tensor:
    """Return the values with a zero before them: [batch, 1 + n]."""
    return torch.nn.functional.pad(values, (1, 0))


def _automaton(start: bytes, end: bytes, symbols: int) -> tuple[list[bytes], Table, Table]:
    """Return the states, then [states, symbols] the next state and the marker that is completed.

    A state is a beginning of a marker, the first one nothing: the longest that what was read ends with. Symbols are 0
    to `symbols` - 1.
    """
    states = list(dict.fromkeys(marker[:size] for marker in (start, end) for size in range(max(len(marker), 1))))
    step = np.zeros((len(states), symbols), dtype=np.int64)
    event = np.zeros((len(states), symbols), dtype=np.uint8)
    for number, state in enumerate(states):
        for symbol in range(symbols):
            read = state + symbol.to_bytes()
            step[number, symbol] = states.index(max((part for part in states if read.endswith(part)), key=len))
            if end and read.endswith(end):
                event[number, symbol] = _CLOSED
            elif start and read.endswith(start):
                event[number, symbol] = _OPENED
    return states, step, event


def _reachable(step: Table) -> set[int]:
    """Return the states that some sequence of texts leads to."""
    found, new = {0}, {0}
    while new:
        new = {int(state) for state in np.unique(step[list(new)])} - found
        found |= new
    return found


def _run(step: Table, event: Table, texts: Sequence[bytes]) -> tuple[Table, Table]:
    """Return what whole texts do: the final state, and the latest marker that is completed, each [states, texts]."""
    lengths = np.array([len(text) for text in texts])
    order = np.argsort(-lengths, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])[order]
    read = np.frombuffer(b"".join(texts), dtype=np.uint8)
    state = np.repeat(np.arange(len(step))[:, None], len(texts), axis=1)
    found = np.zeros_like(state, dtype=np.uint8)
    for place in range(lengths.max(initial=0)):
        longer = int((lengths > place).sum())
        symbols = read[offsets[:longer] + place]
        came = event[state[:, :longer], symbols]
        found[:, :longer] = np.where(came != _NOTHING, came, found[:, :longer])
        state[:, :longer] = step[state[:, :longer], symbols]
    back = np.argsort(order)
    return state[:, back], found[:, back]
