"""The keep rule: which slots survive a compaction (arXiv 2601.18383, section 4). Pure functions of tensors."""

import torch


def select(scores: torch.Tensor, pinned: torch.Tensor, live: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Choose the slots to keep: all pinned ones, then the best-scored others; among equal scores the later slot wins.

    Args:
        scores: float32 [..., batch, heads, slots]. +inf (an answer token) ranks above every finite score and below the
            pinned slots; NaN ranks lowest.
        pinned: bool, broadcastable to `scores`: slots kept whatever their score (question, local window).
        live: bool, broadcastable to `scores`: False marks slots that hold no token; they are never kept.
        keep: int64 [batch], how many slots each row keeps; at least the row's pinned ones and at most its live ones.

    Returns:
        bool, shaped as `scores`.
    """
    lowest, highest = torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).max
    ranked = scores.nan_to_num(nan=lowest, posinf=highest, neginf=lowest)
    ranked = ranked.masked_fill(pinned, float("inf")).masked_fill(~live, float("-inf"))
    # a stable sort of the flipped slots puts the later one of two equals first, on every device
    order = ranked.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    best = live_slots(keep, order.shape[-1])[:, None]
    return torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, best.expand_as(order)).flip(-1)


def needed(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    most: torch.Tensor,
    local_window: int,
    threshold: float,
    question: torch.Tensor | None = None,
    answer: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return how many tokens each row keeps where a score must lie above a threshold: what is kept anyway counts too.

    Every head holds as many tokens, so the one that needs most decides; the others keep their best-scored besides.

    Args:
        scores: as in `survivors`, and so the other arguments.
        lengths: tokens of each row.
        most: int64 [batch], how many a row may keep.
        local_window: most recent tokens.
        threshold: of the scores.
        question: tokens kept anyway.
        answer: tokens above all thresholds.

    Returns:
        int64 [batch].
    """
    scores, pinned, live = _ranked(scores, lengths, local_window, question, answer)
    counts = (live & (pinned | (scores > threshold))).sum(dim=-1)
    return counts.amax(dim=-1).flatten(0, -2).amax(dim=0).minimum(most)


def survivors(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    keep: torch.Tensor,
    local_window: int,
    question: torch.Tensor | None = None,
    answer: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose the slots that survive a compaction: question and local window, then answer, then the best-scored others.

    Args:
        scores: float32 [..., batch, heads, slots].
        lengths: int64 [batch], tokens of each row, which fill its slots from the first one on.
        keep: int64 [batch], how many each row keeps.
        local_window: how many of the most recent tokens are kept anyway.
        question: bool, broadcastable to `scores`: tokens kept anyway; None for none.
        answer: bool, broadcastable to `scores`: tokens that rank above all scored ones; None for none.

    Returns:
        bool, shaped as `scores`.
    """
    return select(*_ranked(scores, lengths, local_window, question, answer), keep)


def _ranked(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    local_window: int,
    question: torch.Tensor | None,
    answer: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, pinned slots and live ones, as `select` takes them. Arguments as in `survivors`."""
    live = live_slots(lengths, scores.shape[-1])[:, None]
    pinned = live & ~live_slots(lengths - local_window, scores.shape[-1])[:, None]
    if question is not None:
        pinned = pinned | question
    if answer is not None:
        scores = scores.masked_fill(answer, float("inf"))
    return scores, pinned, live


def left_align(kept: torch.Tensor, width: int) -> torch.Tensor:
    """Return slot indices that move the kept slots, in their order, to the first of `width` slots.

    Args:
        kept: bool [..., slots] with at most `width` True in every row.
        width: number of slots afterwards.

    Returns:
        int64 [..., width]. A row with fewer kept slots ends with indices of slots that it did not keep.
    """
    return (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :width]


def right_align(kept: torch.Tensor, width: int) -> torch.Tensor:
    """Return slot indices that move the kept slots, in their order, to the end of `width` slots.

    Args:
        kept: bool [..., slots] with at most `width` True in every row.
        width: number of slots afterwards.

    Returns:
        int64 [..., width]. A row with fewer kept slots starts with indices of slots that it did not keep.
    """
    return kept.to(torch.uint8).argsort(dim=-1, stable=True)[..., kept.shape[-1] - width :]


def live_slots(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Return the slots that hold a token if a row's tokens fill its slots from the first one on: bool [batch, width].

    Args:
        lengths: int64 [batch], tokens per row.
        width: number of slots.
    """
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
