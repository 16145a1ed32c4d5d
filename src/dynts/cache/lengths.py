"""How many tokens a cache holds: as measured in a generate() call, and as it follows from a sequence's lengths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dynts.config import CompressionConfig
from dynts.errors import UnsupportedError


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
        fed_tokens: tokens of all rows that decode steps fed, those after a row's end included.
        attended_tokens: cached tokens that these attended to, themselves among them, all together.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    compactions: list[Compaction] = field(default_factory=list)
    peak_tokens: int = 0
    peak_bytes: int = 0
    fed_tokens: int = 0
    attended_tokens: int = 0

    @property
    def mean_tokens(self) -> float:
        """Cached tokens that a token attends to in a decode step, on average; zero where there was none."""
        return self.attended_tokens / max(1, self.fed_tokens)

    def count(self, lengths: Sequence[int], coming: Sequence[int]) -> None:
        """Count the tokens of decode steps.

        Args:
            lengths: cached tokens of each row, these included and not evicted yet.
            coming: how many came, of each row.
        """
        self.fed_tokens += sum(coming)
        self.attended_tokens += sum(_climb(length - new, length) for length, new in zip(lengths, coming, strict=True))


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


@dataclass(slots=True)
class CacheUse:
    """What the cache does for one sequence, told by what it holds after the prompt and after every step.

    Attributes:
        compactions: so far.
        peak_tokens: most cached tokens so far.
        cached_tokens: now.
        evicted_tokens: so far.
    """

    compactions: list[Compaction] = field(default_factory=list)
    peak_tokens: int = 0
    cached_tokens: int = 0
    evicted_tokens: int = 0
    _question: int = 0
    _attended: int = 0

    def observe(self, cached: int, fed: int) -> None:
        """Take note of a step.

        Args:
            cached: tokens that the sequence has in the cache now.
            fed: tokens that it was fed so far.
        """
        known, evicted = self.cached_tokens + self.evicted_tokens, fed - cached
        newly = evicted - self.evicted_tokens
        before = cached + newly  # the compaction, if there was one
        if known == 0:
            self._question = fed
        else:
            self._attended += _climb(self.cached_tokens, before)
        if newly > 0:
            self.compactions.append(Compaction(fed - self._question, before, cached))
        self.peak_tokens = max(self.peak_tokens, before)
        self.evicted_tokens, self.cached_tokens = evicted, cached

    def lengths(self) -> CacheLengths:
        """Return them, as of a sequence that has ended."""
        steps = self.cached_tokens + self.evicted_tokens - self._question
        mean = self._attended / steps if steps else float(self._question)
        return CacheLengths(tuple(self.compactions), self.peak_tokens, mean)


def cache_lengths(question_tokens: int, generated_tokens: int, schedule: CompressionConfig | None) -> CacheLengths:
    """Return what `BudgetCache` does with one sequence, alone or in any batch, up to its own end.

    Args:
        question_tokens: of the prompt.
        generated_tokens: the last one, which is never fed back, included.
        schedule: the budget; None never evicts.

    Raises:
        DyntsError: the budget is too small for the question.
        UnsupportedError: the lengths depend on scores.
    """
    if schedule is not None and schedule.threshold is not None:
        raise UnsupportedError(
            f"how many tokens a cache holds under threshold {schedule.threshold:g} depends on their scores: ask without"
        )
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
