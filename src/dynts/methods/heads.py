"""What methods share that score tokens per layer and KV head: the two granularities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dynts.cache.method import Granularity, Method, check_granularity


@dataclass
class HeadwiseMethod(Method):
    """A method that scores tokens per layer and KV head.

    Args:
        granularity: "native" keeps each layer and KV head its own tokens, as published; "shared" averages the scores
            over layers and KV heads and keeps one set for all, as the DynTS release runs every method.
        protect_question: keep the question too.
    """

    granularity: Granularity = "shared"
    protect_question: bool = False

    def __post_init__(self) -> None:
        check_granularity(self.granularity)

    def combine(self, score_layer: Callable[[int], torch.Tensor], device: torch.device) -> torch.Tensor:
        """Put layers together, as the granularity asks.

        Args:
            score_layer: gives the scores of a layer, float32 [batch, KV heads, slots].
            device: where the result goes.

        Returns:
            [layers, batch, KV heads, slots], or [1, batch, 1, slots] with shared granularity.
        """
        layers = range(len(self.layers))
        if self.granularity == "native":
            return torch.stack([score_layer(layer).to(device) for layer in layers])
        mean = torch.stack([score_layer(layer).mean(dim=1).to(device) for layer in layers]).mean(dim=0)
        if self.heads_group is not None:
            # each process has seen its own heads, and all must keep the same tokens
            torch.distributed.all_reduce(mean, group=self.heads_group)
            mean = mean / self.heads_group.size()
        return mean[None, :, None]
