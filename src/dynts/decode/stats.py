"""What a generate() call cost."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Compaction(NamedTuple):
    """One compaction.

    Attributes:
        step: tokens generated and fed back since the latest question; 0 made room for a user turn.
        before: cached tokens of the fullest row before.
        after: cached tokens of the fullest row after.
    """

    step: int
    before: int
    after: int


@dataclass(slots=True)
class GenerationStats:
    """One generate() call.

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
