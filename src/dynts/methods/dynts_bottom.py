"""DynTS-bottom: the ablation that keeps the thinking tokens with the lowest predicted importance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dynts.methods.dynts import DynTS

if TYPE_CHECKING:
    from dynts.cache.slots import Slots


@dataclass
class DynTSBottom(DynTS):
    """DynTS with the order of the scores reversed."""

    def score(self, slots: "Slots") -> torch.Tensor:
        """The predictor's scores, negated."""
        return -super().score(slots)
