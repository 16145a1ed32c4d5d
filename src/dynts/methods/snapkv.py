"""SnapKV at decode time: attention from the last queries, pooled along the keys (arXiv 2404.14469)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.methods.attention import KeyMasks, ObservationWindowMethod
from dynts.models.attention import Softmax, attention_weights


@dataclass
class SnapKV(ObservationWindowMethod):
    """Mean attention of the last `window` queries to the keys before them, per KV head, max-pooled.

    SnapKV itself compresses prompts. This is the decode-time form used in R-KV's comparison: the softmax runs over the
    keys before the window, and query heads of a KV group are averaged.
    """

    name: ClassVar[str] = "snapkv"

    def score_keys(self, query: torch.Tensor, key: torch.Tensor, masks: KeyMasks, softmax: Softmax) -> torch.Tensor:
        """Return the pooled mean attention. Arguments and result as in the base class."""
        weights = attention_weights(query, key, softmax, masks.candidates[:, None, None, None])
        asking = masks.asking[:, None, None, :, None]
        # rows that did not have so many tokens yet average over the queries they have
        mean = (weights * asking).sum(dim=(2, 3)) / (asking.sum(dim=(2, 3)) * weights.shape[2]).clamp(min=1)
        return self.pool(mean)
