"""How many tokens a cache holds: as measured in a generate() call, and as it follows from a sequence's lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dynts.config import CompressionConfig


class Compaction(NamedTuple):
    """One compaction.

    Attributes:
        step: tokens generated and fed back since the latest question; 0 where room was made for a user turn.
        before: cached tokens of the fullest row before.
        after: cached tokens of the fullest row after.
    """

    step: int
    before: int
    after: int


@dataclass(slots=True)
class GenerationStats:
    """What a generate() call cost.

    Attributes:
        prompt_tokens: tokens of the longest question or user turn that the call fed, padding excluded.
        generated_tokens: tokens generated for the longest row.
        compactions: in the order they happened.
        peak_tokens: most cached tokens of a row, the physical length of the cache; never above the budget.
        peak_bytes: most bytes allocated for keys and values, over all layers and rows, measured from the tensors.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    compactions: list[Compaction] = field(default_factory=list)
    peak_tokens: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CacheLengths:
    """The cached tokens of one sequence while it is generated.

    Args:
        compactions: of this sequence.
        peak: most cached tokens.
        mean: cached tokens that a decode step attends to, its own among them; the prompt's where there was no such
            step.
    """

    compactions: tuple[Compaction, ...]
    peak: int
    mean: float


def cache_lengths(question_tokens: int, generated_tokens: int, schedule: CompressionConfig | None) -> CacheLengths:
    """Return what `BudgetCache` does with one sequence, alone or in any batch, up to its own end.

    Args:
        question_tokens: of the prompt.
        generated_tokens: the last one, which is never fed back, included.
        schedule: the budget; None never evicts.

    Raises:
        DyntsError: the budget is too small for the question.
    """
    last = max(generated_tokens - 1, 0)
    compactions = []
    step, length, total, peak = 0, question_tokens, 0, question_tokens
    if schedule is not None:
        schedule.check_question(question_tokens)
        kept = schedule.kept_tokens(question_tokens)
        while step + schedule.budget - length <= last:
            total += _climb(length, schedule.budget)
            step, length = step + schedule.budget - length, kept
            compactions.append(Compaction(step, schedule.budget, kept))
            peak = schedule.budget
    end = length + last - step
    total += _climb(length, end)
    return CacheLengths(tuple(compactions), max(peak, end), total / last if last else float(question_tokens))


def attended_tokens(
    question_tokens: int, generated_tokens: int, compactions: Sequence[tuple[int, int, int]]
) -> npt.NDArray[np.int64]:
    """Return the tokens that each decode step attends to, its own included: int [generated tokens - 1].

    The first token comes from the prefill, and the last one is not fed back.

    Args:
        question_tokens: of the prompt.
        generated_tokens: all of them.
        compactions: see `CacheLengths`.
    """
    corners = [(0, question_tokens), *((step, after) for step, _, after in compactions)]
    starts, lengths = np.array(corners, dtype=np.int64).T
    steps = np.arange(1, generated_tokens, dtype=np.int64)
    # a step still attends to what is evicted after it
    since = np.searchsorted(starts, steps, side="left") - 1
    return lengths[since] + steps - starts[since]


def _climb(start: int, end: int) -> int:
    """Return the sum of start + 1, ..., end."""
    return (end - start) * (start + 1 + end) // 2
