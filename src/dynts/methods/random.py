"""Random Attention: the question, a recent window, and a random subset for each KV head (arXiv 2609.03430)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.cache.method import Granularity, check_granularity
from dynts.cache.slots import Slots
from dynts.methods.dynts import DynTSRandom, random_scores


@dataclass
class Random(DynTSRandom):
    """Random scores. Answer tokens compete with all others, other than in the ablation of DynTS.

    The paper keeps the prompt and draws uniformly at random within each head, which granularity "native" does, and
    that is the default here alone: one random set for all heads is another, weaker method. Ours is when lots
    are drawn: once for each position, layer and head. So they depend on neither batch nor order, and the kept tokens
    are at any time a uniform sample of all that was read; fresh lots at every compaction would favour later tokens. The
    schedule is that of all methods here.

    Args:
        seed: chooses the scores. All rows of a batch share them.
        protect_question: keep the question too.
        granularity: "native", the paper's: each layer and KV head draws its own tokens. "shared": one set for all.
    """

    name: ClassVar[str] = "random"
    protect_answer: ClassVar[bool] = False
    granularity: Granularity = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_granularity(self.granularity)

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the random scores, with native granularity those of each layer and head."""
        if self.granularity == "shared":
            return super().score(slots)
        count = slots.history.positions().shape[1]
        scores = random_scores(self.seed, count, len(self.layers), self.all_heads)[..., self.own_heads]
        table = scores.permute(1, 2, 0).to(slots.columns.device).unsqueeze(1)
        positions = slots.positions.clamp(min=0)
        return table.expand(-1, positions.shape[1], -1, -1).gather(-1, positions)
