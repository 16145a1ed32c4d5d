"""Methods that look at positions only: the full cache, the most recent tokens, and the question beside them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.cache.method import Method
from dynts.cache.slots import Slots


@dataclass
class Full(Method):
    """Keep every token, in the same cache engine as the other methods, so that comparisons are fair."""

    name: ClassVar[str] = "full"
    evicts: ClassVar[bool] = False

    def score(self, slots: Slots) -> torch.Tensor:
        """Refuse: a full cache has no budget, so nobody asks."""
        raise AssertionError("a full cache is never compacted")


@dataclass
class Window(Method):
    """The latest tokens, as many as the other methods keep.

    Args:
        protect_question: keep the question too.
    """

    name: ClassVar[str] = "window"
    ranks_places: ClassVar[bool] = True
    keeping_question: ClassVar[str | None] = "question-window"
    protect_question: bool = False

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the position: later is better."""
        return slots.positions.float()


@dataclass
class QuestionWindow(Window):
    """The ablation "without thinking tokens" of the DynTS release."""

    name: ClassVar[str] = "question-window"
    keeping_question: ClassVar[str | None] = None
    protect_question: bool = True
