"""Sampling in which every row of a batch has a random generator of its own.

What is drawn for a row then depends on its seed and its logits alone: not on the rows beside it, nor on what was generated
before. `generate` draws for the whole batch from one generator, so that a batch of other rows would change every trace.
"""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dynts.decode.answer import Sampling

_LARGEST = 1 - 2**-20
"""Below 1 by more than a sum of float32 probabilities can be off."""


class RowSampling(LogitsProcessor):
    """Chooses each row's next token and leaves no other possible, for greedy search to pick.

    Args:
        sampling: temperature, top-k and top-p, in that order, as in transformers.
        seeds: of the rows.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        self.warpers = LogitsProcessorList(
            [
                TemperatureLogitsWarper(sampling.temperature),
                TopKLogitsWarper(sampling.top_k),
                TopPLogitsWarper(sampling.top_p),
            ]
        )
        # drawn at once and on the CPU: the same on every device, and no transfer at each step
        draws = [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed)).clamp(max=_LARGEST)
            for seed in seeds
        ]
        self.draws = torch.stack(draws, dim=1).to(device)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [rows, vocabulary] that are -inf but for the chosen token."""
        mass = self.warpers(input_ids, scores.float()).softmax(dim=-1).cumsum(dim=-1)
        point = self.draws[self.step][:, None] * mass[:, -1:]
        chosen = torch.searchsorted(mass, point, right=True)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)  # type: ignore[return-value]
