"""Sampling in which every row of a batch has settings and a random generator of its own.

What is drawn for a row then depends on its sampling and its logits alone: not on the rows beside it, nor on what was generated
before. `generate` draws for the whole batch from one generator, so that a batch of other rows would change every trace.
"""

from collections.abc import Collection, Sequence

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
        samplings: of the rows: seed, temperature (0 is greedy), top-k and top-p, applied in that order, as in transformers.
        device: of the logits.
        more: further warpers, applied after those.
    """

    def __init__(
        self, samplings: Sequence[Sampling], device: torch.device, more: Sequence[LogitsProcessor] = ()
    ) -> None:
        rows_of: dict[tuple[float, int, float], list[int]] = {}
        for row, sampling in enumerate(samplings):
            if sampling.temperature:
                rows_of.setdefault((sampling.temperature, sampling.top_k, sampling.top_p), []).append(row)
        self.groups = [
            (
                LogitsProcessorList(
                    [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), *more]
                ),
                slice(None) if len(rows) == len(samplings) else torch.tensor(rows, device=device),
            )
            for (temperature, top_k, top_p), rows in rows_of.items()
        ]
        # drawn at once and on the CPU: the same on every device, and no transfer at each step
        steps = max(sampling.max_new_tokens for sampling in samplings)
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(sampling.seed)).clamp(max=_LARGEST)
            for sampling in samplings
        ]
        self.draws = torch.stack(draws, dim=1).to(device)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [rows, vocabulary] that are -inf but for the chosen token."""
        chosen = scores.argmax(dim=-1, keepdim=True)
        for warpers, rows in self.groups:
            mass = warpers(input_ids, scores[rows].float()).softmax(dim=-1).cumsum(dim=-1)
            point = self.draws[self.step][rows][:, None] * mass[:, -1:]
            chosen[rows] = torch.searchsorted(mass, point, right=True)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)  # type: ignore[return-value]


class RowMinLength(LogitsProcessor):
    """Lets no row end before it has a length, prompt included and padding not.

    Args:
        length: in tokens.
        padding: int64 [rows, 1], tokens before each prompt.
        end_tokens: what ends a row.
    """

    def __init__(self, length: int, padding: torch.Tensor, end_tokens: Collection[int]) -> None:
        self.length = length
        self.padding = padding
        self.ends = sorted(end_tokens)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [rows, vocabulary] in which rows that are too short have -inf for what would end them."""
        short = input_ids.shape[1] - self.padding < self.length
        scores = scores.clone()  # type: ignore[assignment]
        scores[:, self.ends] = scores[:, self.ends].masked_fill(short, -torch.inf)
        return scores
