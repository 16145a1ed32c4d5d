"""DynTS-random: the ablation that keeps random thinking tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from dynts.errors import check_count
from dynts.methods.base import Method

if TYPE_CHECKING:
    from dynts.cache.slots import Slots


def random_scores(seed: int, positions: int) -> torch.Tensor:
    """float32 [positions]: one score per logical position, the same on every machine, device and batch."""
    return torch.rand(positions, generator=torch.Generator().manual_seed(seed))


@dataclass
class DynTSRandom(Method):
    """A random score per logical position, drawn once, so that it lasts like a predicted one; protection as in DynTS.

    Args:
        seed: chooses the scores. All rows of a batch share them.
    """

    seed: int = 0
    protect_question: bool = True
    protect_answer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("seed", self.seed)

    def score(self, slots: "Slots") -> torch.Tensor:
        """The random scores."""
        table = random_scores(self.seed, slots.history.positions().shape[1]).to(slots.columns.device)
        return table[slots.positions.clamp(min=0)]
