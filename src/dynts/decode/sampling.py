"""How rows of a batch draw their tokens, each by settings of its own, and what tells rows that a model fails."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
)

from dynts.cache.columns import upload
from dynts.config import Sampling

NOT_FINITE = "the model's logits are not finite (NaN or infinite)"
"""What is said of such a row; why is not known: weights or a dtype that overflow, as float16 does."""


class FiniteRows(LogitsProcessor):
    """Notes the rows without a finite largest logit, for good, and gives them logits that can be drawn from.

    It comes before all other processors. What such a row draws means nothing: whoever reads the tokens looks at
    `failed`, and ends the row.

    Args:
        rows: of the batch.
        device: of the input, where `generate` brings the logits.

    Attributes:
        failed: bool [rows].
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.failed = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy, set to zero in the rows that failed."""
        self.failed |= ~scores.amax(dim=-1).isfinite()  # NaN if there is one
        return scores.masked_fill_(self.failed[:, None], 0.0)  # type: ignore[return-value]


class FailedRowsEnd(StoppingCriteria):
    """Ends the rows that `FiniteRows` has noted."""

    def __init__(self, finite: FiniteRows) -> None:
        self.finite = finite

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return which rows have ended: bool [rows]."""
        return self.finite.failed  # type: ignore[return-value]


_LARGEST = 1 - 2**-20
"""Below 1 by more than a sum of float32 probabilities can be off."""
_TIED = 200
"""Most tokens that are looked at beyond the k likeliest, for those that are as likely as the last of these."""


def draws_of(sampling: Sampling) -> list[float]:
    """Return the random numbers of a sequence, one for each token that it may get, from 0 to less than 1.

    They are drawn at once and on the CPU: the same on every device, whatever the batch.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    return torch.rand(sampling.max_new_tokens, generator=generator).clamp(max=_LARGEST).tolist()


class RowSampling:
    """Chooses the next token of each row.

    Top-k comes first, so that all else is done for a few candidates instead of the vocabulary. Tokens that tie with the
    last of the k are candidates too, as in transformers, up to `_TIED` of them.

    Args:
        samplings: of the rows: temperature (0 is greedy), top-k and top-p.
        device: of the logits.
        more: further warpers, applied after those.
    """

    def __init__(
        self, samplings: Sequence[Sampling], device: torch.device, more: Sequence[LogitsProcessor] = ()
    ) -> None:
        rows_of: dict[tuple[int, float, float], list[int]] = {}
        for row, sampling in enumerate(samplings):
            if sampling.temperature:
                rows_of.setdefault((sampling.top_k, sampling.temperature, sampling.top_p), []).append(row)
        self.groups = []
        for (top_k, temperature, top_p), rows in rows_of.items():
            nucleus = [StableTopP(top_p)] if top_p < 1 else []
            warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), *nucleus, *more])
            self.groups.append((top_k, warpers, upload(rows, device)))
        self._greedy = any(not sampling.temperature for sampling in samplings)

    def __call__(self, scores: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
        """Return the tokens: int64 [rows].

        Args:
            scores: float32 [rows, vocabulary].
            draws: a random number for each row, see `draws_of`.
        """
        chosen = scores.argmax(dim=-1) if self._greedy else scores.new_empty(len(scores), dtype=torch.int64)
        points = upload(draws, scores.device, torch.float32) if self.groups else None
        for top_k, warpers, rows in self.groups:
            assert points is not None
            of_rows = scores if len(rows) == len(scores) else scores[rows]
            tokens, logits = _candidates(of_rows, top_k)
            mass = warpers(cast(Any, None), cast(Any, logits.float())).softmax(dim=-1).cumsum(dim=-1)
            drawn = torch.searchsorted(mass, points[rows, None] * mass[:, -1:], right=True)
            chosen[rows] = (drawn if tokens is None else tokens.gather(1, drawn)).squeeze(1)
        return chosen


def _candidates(scores: torch.Tensor, top_k: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Find the tokens that top-k leaves, in the order of the vocabulary, which is the one that draws go by.

    Args:
        scores: [rows, vocabulary].
        top_k: how many tokens, beside those that tie with the last one.

    Returns:
        The tokens [rows, candidates], None for the whole vocabulary, and their scores, -inf where top-k leaves it out.
    """
    if top_k >= scores.shape[1]:
        return None, scores
    best, tokens = scores.topk(min(top_k + _TIED, scores.shape[1]))
    tokens, order = tokens.sort(dim=-1)
    least = best[:, top_k - 1 : top_k]
    best = best.gather(1, order)
    return tokens, best.masked_fill(best < least, -torch.inf)


class StableTopP(LogitsProcessor):
    """Keeps the smallest set of tokens with a probability, as `TopPLogitsWarper` of transformers does.

    Where tokens at its edge are equally likely, as they often are in half precision, it leaves out those that come
    first in the vocabulary. That one takes whichever the device's sort puts first.

    Args:
        top_p: the probability, below 1.
    """

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores [rows, tokens], -inf outside the set."""
        ascending, order = scores.sort(dim=-1, stable=True)
        outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        outside[:, -1] = False  # one is always left
        return scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)  # type: ignore[return-value]
