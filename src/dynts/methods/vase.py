"""VaSE: keep tokens by the lengths of their keys and values, seen through a random projection (arXiv 2606.03928)."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
import torch

from dynts.cache.slots import Slots
from dynts.errors import check_count
from dynts.methods.heads import HeadwiseMethod


@dataclass
class VaSE(HeadwiseMethod):
    """Value-aware stochastic eviction, in the form that needs no attention: VaSE-DKV.

    With key k and value v of a token in a KV head, and a Gaussian matrix G [head size, rank] of variance 1 / rank, its
    score is `|k G|^2 |v G|^2`, divided by the sum over the head's cached tokens. The first `n_sink` tokens rank above
    all. What is stochastic is G: every compaction draws another one for each layer, which the layer's KV heads share,
    and keys and values too (where their sizes differ, the smaller ones take its first rows).

    A draw depends on the seed, on how many tokens the row has read, and on the layer: not on batch, order or process.

    Args:
        granularity: see `HeadwiseMethod`; the paper's is native.
        protect_question: keep the question too, other than in the paper.
        seed: chooses the projections. Rows that have read equally many tokens share them.
        rank: columns of a projection.
        n_sink: how many of the first tokens stay.
    """

    name: ClassVar[str] = "vase"
    reads_cache: ClassVar[bool] = True
    seed: int = 0
    rank: int = 20
    n_sink: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("seed", self.seed)
        check_count("rank", self.rank, least=1)
        check_count("n_sink", self.n_sink)

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the product of the projected lengths, squared; first tokens rank above all."""
        read = (slots.of_rows(slots.history.positions()).amax(dim=1) + 1).tolist()
        head_size = max(states.shape[-1] for states in (*slots.all_keys, *slots.all_values))
        drawn = torch.stack([projections(self.seed, count, len(self.layers), head_size, self.rank) for count in read])

        def score_layer(layer: int) -> torch.Tensor:
            key, value = slots.keys(layer), slots.values(layer)
            projection = drawn[:, layer, None].to(key.device)
            squares = _lengths_squared(key, projection) * _lengths_squared(value, projection)
            squares = squares * slots.live.to(key.device)[:, None]
            return squares / squares.sum(dim=-1, keepdim=True)

        scores = self.combine(score_layer, slots.columns.device)
        return scores.masked_fill(slots.positions < self.n_sink, float("inf"))


def projections(seed: int, read: int, layers: int, head_size: int, rank: int) -> torch.Tensor:
    """Return the random projections of a compaction, the same on every machine and device.

    Args:
        seed: chooses them.
        read: tokens that the row has read.
        layers: how many layers.
        head_size: rows of a projection.
        rank: columns of a projection.

    Returns:
        float32 [layers, head size, rank], normal with variance 1 / rank.
    """
    normal = np.random.default_rng((seed, read)).standard_normal((layers, head_size, rank))
    return torch.from_numpy(normal / sqrt(rank)).float()


def _lengths_squared(states: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return the squared lengths of projected states: float32 [batch, KV heads, slots].

    Args:
        states: [batch, KV heads, slots, size].
        projection: [batch, 1, at least size, rank].
    """
    return (states.float() @ projection[:, :, : states.shape[-1]]).square().sum(dim=-1)
