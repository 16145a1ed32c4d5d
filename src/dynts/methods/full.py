"""Full cache: nothing is ever evicted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynts.methods.base import Method

if TYPE_CHECKING:
    from dynts.cache.slots import Slots


@dataclass
class Full(Method):
    """Keep every token, in the same cache engine as the other methods, so that comparisons are fair."""

    def score(self, slots: "Slots") -> torch.Tensor:
        """Never asked: a full cache has no budget."""
        raise AssertionError("a full cache is never compacted")
