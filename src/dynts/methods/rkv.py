"""R-KV: attention from the last queries, less the redundancy among keys (arXiv 2505.24133)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.errors import DyntsError
from dynts.methods.attention import KeyMasks, ObservationWindowMethod
from dynts.models.attention import attention_logits

SIMILAR = 0.5
ENTRIES_AT_ONCE = 1 << 24
"""Entries of the similarity matrix held at once, per layer: 64 MiB in float32."""


@dataclass
class RKV(ObservationWindowMethod):
    """`mix * A - (1 - mix) * R` per KV head: A is attention as in SnapKV, R how much a key repeats others.

    Args:
        mix: the paper's lambda.
    """

    name: ClassVar[str] = "rkv"
    window: int = 8
    mix: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mix, int | float) or not 0.0 <= self.mix <= 1.0:
            raise DyntsError(f"mix must lie between 0 and 1, got {self.mix!r}")

    def score_keys(
        self, query: torch.Tensor, key: torch.Tensor, masks: KeyMasks, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        """Return attention less redundancy. Arguments and result as in the base class."""
        logits = attention_logits(query, key, scaling, softcap).amax(dim=2)
        hidden = ~masks.candidates[:, None, None]
        weights = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1).masked_fill(hidden, 0.0)
        asking = masks.asking[:, None, :, None]
        attention = self.pool((weights * asking).sum(dim=2) / asking.sum(dim=2).clamp(min=1))
        return self.mix * attention - (1 - self.mix) * redundancy(key, masks.live)


def redundancy(key: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return how much each key repeats others: softmax over keys of the mean cosine similarity to all keys.

    For each key the last one that is similar to it (above `SIMILAR`) is exempted, so that the latest of a group of
    repetitions is not held against itself. The similarity matrix is built a few rows at a time.

    Args:
        key: [batch, KV heads, slots, head size].
        live: bool [batch, slots].

    Returns:
        float32 [batch, KV heads, slots].
    """
    batch, heads, count, _ = key.shape
    unit = torch.nn.functional.normalize(key.float(), dim=-1) * live[:, None, :, None]
    index = torch.arange(count, device=key.device)
    total = unit.new_zeros(batch, heads, count)
    rows = max(1, ENTRIES_AT_ONCE // (batch * heads * count))
    for start in range(0, count, rows):
        similarity = unit[:, :, start : start + rows] @ unit.transpose(2, 3)
        similarity[..., index[start : start + rows] - start, index[start : start + rows]] = 0.0
        last = torch.where(similarity > SIMILAR, index, -1).amax(dim=-1, keepdim=True)
        exempted = similarity.gather(-1, last.clamp(min=0)).where(last < 0, 0.0)
        similarity.scatter_(-1, last.clamp(min=0), exempted)
        total += similarity.sum(dim=2)
    mean = total / live.sum(dim=1)[:, None, None]
    return mean.masked_fill(~live[:, None], float("-inf")).softmax(dim=-1)
