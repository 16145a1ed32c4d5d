"""KeyDiff: keep the keys that differ most from all others, without a look at attention (arXiv 2504.15364)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.cache.slots import Slots
from dynts.methods.heads import HeadwiseMethod


@dataclass
class KeyDiff(HeadwiseMethod):
    """Minus the cosine similarity of a key to the anchor: the mean of all cached keys, each of length one.

    The keys are those of the cache, after the rotary embedding. With keys of length one in the mean, a key's score
    orders the tokens of a head as its mean cosine similarity to all of them would, at the cost of a single pass.
    """

    name: ClassVar[str] = "keydiff"
    reads_cache: ClassVar[bool] = True

    def score(self, slots: Slots) -> torch.Tensor:
        """Return how little each key resembles the others."""
        return self.combine(lambda layer: distinctiveness(slots.keys(layer), slots.live), slots.columns.device)


def distinctiveness(key: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return minus the cosine similarity of each key to the mean direction of the live ones.

    Args:
        key: [batch, KV heads, slots, head size].
        live: bool [batch, slots].

    Returns:
        float32 [batch, KV heads, slots].
    """
    unit = torch.nn.functional.normalize(key.float(), dim=-1)
    # a sum points where the mean does
    anchor = (unit * live.to(key.device)[:, None, :, None]).sum(dim=2)
    return -(unit @ torch.nn.functional.normalize(anchor, dim=-1).unsqueeze(-1)).squeeze(-1)
