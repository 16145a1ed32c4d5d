"""What a forward pass brings to a cache: read from its mask and its positions, and refused where it cannot be exact."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dynts.cache.slots import History, Slots
from dynts.errors import DyntsError, UnsupportedError


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """Cached tokens that an attention mask hides.

    Attributes:
        shown: bool [batch, columns fed so far], False for them and for padding.
        slots: of all rows.
        kept: bool, shaped as `slots.columns`, True for the others.
        lengths: how many others each row has.
        next_positions: logical position of each row's next token.
    """

    shown: torch.Tensor
    slots: Slots
    kept: torch.Tensor
    lengths: tuple[int, ...]
    next_positions: tuple[int, ...]


def check_mask(mask: torch.Tensor | None, rows: int, tokens: int, columns: int) -> None:
    """Refuse a mask of other columns than the new ones, or than all so far.

    Args:
        mask: [rows, tokens or columns + tokens], or None.
        rows: of the input.
        tokens: columns of the input.
        columns: fed before.

    Raises:
        DyntsError: names the sizes.
    """
    if mask is not None and (len(mask) != rows or mask.shape[1] not in (tokens, columns + tokens)):
        raise DyntsError(
            f"attention_mask has {mask.shape[1]} columns in {len(mask)} rows; expected {tokens} for the new tokens, "
            f"or {columns + tokens} with those in the cache, in {rows} rows"
        )


def arriving(
    mask: torch.Tensor | None, rows: int, tokens: int, device: torch.device
) -> tuple[torch.Tensor | None, tuple[int, ...]]:
    """Return which of the new columns are tokens, None if all are, and how many each row has.

    Args:
        mask: [rows, at least `tokens`], 0 for padding, or None.
        rows: of the input.
        tokens: columns of the input.
        device: where the first result goes: bool [rows, tokens].
    """
    if mask is None:
        return None, (tokens,) * rows
    new = mask[:, -tokens:].to(device, torch.bool)
    coming = tuple(new.sum(dim=1).tolist())
    return (None if min(coming) == tokens else new), coming


def hides_tokens(shown: torch.Tensor, history: History) -> bool:
    """Return whether a mask hides tokens that were fed before, as of rows that had ended before others.

    Args:
        shown: bool [batch, columns fed so far].
        history: of these columns.

    Raises:
        DyntsError: it shows padding as tokens.
    """
    tokens = history.positions() >= 0
    strange = (shown & ~tokens).any(dim=1).tolist()
    if any(strange):
        row = strange.index(True)
        raise DyntsError(
            f"attention_mask shows a token of row {row} that was padding when it was fed, or that an earlier mask has "
            "hidden: the cache does not hold it; hide it again"
        )
    return not torch.equal(shown, tokens)


def find_hidden(shown: torch.Tensor, slots: Slots) -> Hidden:
    """Return what a mask hides of the cached tokens.

    Args:
        shown: bool [batch, columns fed so far].
        slots: of all rows.

    Raises:
        UnsupportedError: heads of one row would be left with different numbers of tokens.
    """
    kept = slots.lookup(shown) & slots.live[:, None]
    counts = kept.sum(dim=-1)
    if not bool((counts == counts[:1, :, :1]).all()):
        raise UnsupportedError(
            "the attention mask hides tokens that some heads have evicted and others not (native granularity): "
            "continue rows that ended at different times one by one"
        )
    return Hidden(shown, slots, kept, tuple(counts[0, :, 0].tolist()), tuple(shown.sum(dim=1).tolist()))


def count_on(first: Sequence[int], tokens: int, device: torch.device, new: torch.Tensor | None = None) -> torch.Tensor:
    """Return the positions of tokens that go on counting, padding left out: int64 [batch, tokens].

    Args:
        first: each row's first position.
        tokens: new columns.
        device: where the result goes.
        new: bool [batch, tokens], False for padding; None if all are tokens.
    """
    start = torch.tensor(first, device=device).unsqueeze(1)
    if new is None:
        return start + torch.arange(tokens, device=device)
    return start + (new.long().cumsum(dim=1) - 1).clamp(min=0)


def check_positions(given: torch.Tensor, expected: torch.Tensor, new: torch.Tensor | None) -> None:
    """Refuse positions that do not go on counting.

    Args:
        given: int64 [batch or 1, tokens].
        expected: int64 [batch, tokens].
        new: bool [batch, tokens], False for padding; None if all are tokens.

    Raises:
        UnsupportedError: says what to do.
    """
    fits = given.ndim == 2 and given.shape[1] == expected.shape[1] and len(given) in (1, len(expected))
    if fits:
        wrong = given.to(expected.device) != expected
        fits = not bool((wrong if new is None else wrong & new).any())
    if not fits:
        raise UnsupportedError(
            "position_ids must go on counting each row's tokens: leave them to dynts, "
            "and cover the whole conversation with attention_mask when continuing one"
        )
