"""StreamingLLM: keep the first tokens, the attention sinks, and the most recent ones (arXiv 2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.cache.method import Method
from dynts.cache.slots import Slots
from dynts.errors import check_count


@dataclass
class StreamingLLM(Method):
    """Attention sinks and the latest tokens, at their original positions (the paper re-assigns positions in the cache).

    Args:
        n_sink: how many first tokens stay.
        protect_question: keep the question too.
    """

    name: ClassVar[str] = "streaming-llm"
    ranks_places: ClassVar[bool] = True
    n_sink: int = 4
    protect_question: bool = False

    def __post_init__(self) -> None:
        check_count("n_sink", self.n_sink)

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the position, with the sinks above all."""
        positions = slots.positions
        return positions.float().masked_fill(positions < self.n_sink, float("inf"))
