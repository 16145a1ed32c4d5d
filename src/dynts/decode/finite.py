"""Rows whose logits are no numbers any more: taken out of their batch, before a token is drawn from them.

A weight that overflowed, or an input that a half-precision model cannot take, gives NaN for one row and leaves the others as
they are. Greedy search would take token 0 of it for ever; sampling would fail for all rows, on CUDA with a device-side assert.
"""

from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

NOT_FINITE = "the model's logits are not finite (NaN or infinite)"
"""What is said of such a row; why is not known: weights or a dtype that overflow, as float16 does."""


class FiniteRows(LogitsProcessor):
    """Notes the rows without a finite largest logit, for good, and gives them logits that can be drawn from.

    It comes before all other processors. What such a row draws means nothing: whoever reads the tokens looks at `failed`, and
    ends the row.

    Args:
        rows: of the batch.
        device: of the input, where `generate` brings the logits.

    Attributes:
        failed: bool [rows].
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.failed = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [rows, vocabulary], zero in the rows that failed."""
        self.failed |= ~scores.amax(dim=-1).isfinite()  # NaN if there is one
        return scores.masked_fill(self.failed[:, None], 0.0)  # type: ignore[return-value]

    def latest(self, input_ids: torch.Tensor) -> tuple[list[int], list[bool]]:
        """Return each row's latest token and whether the row has failed, fetched from the device at once.

        Args:
            input_ids: int64 [rows, columns].
        """
        tokens, failed = torch.stack([input_ids[:, -1], self.failed.long()]).tolist()
        return tokens, list(map(bool, failed))


class FailedRowsEnd(StoppingCriteria):
    """Ends the rows that `FiniteRows` has noted."""

    def __init__(self, finite: FiniteRows) -> None:
        self.finite = finite

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended."""
        return self.finite.failed  # type: ignore[return-value]
