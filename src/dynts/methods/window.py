"""Window: keep the most recent tokens only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynts.methods.base import Method

if TYPE_CHECKING:
    from dynts.cache.slots import Slots


@dataclass
class Window(Method):
    """The latest tokens, as many as the other methods keep.

    Args:
        protect_question: keep the question too.
    """

    protect_question: bool = False

    def score(self, slots: "Slots") -> torch.Tensor:
        """The position: later is better."""
        return slots.positions.float()
