"""The budget schedule that is used with the embedded model."""

from dynts.config import CompressionConfig

QUESTION_TOKENS = 59
"""Mean prompt of the embedded model's task."""
MEAN_LENGTH = 614
"""Mean tokens of a whole solved problem, question and answer included, with the full cache."""


def schedule(budget: int) -> CompressionConfig:
    """Of the room that a question of mean length leaves, 40% are the local window and 40% go to selected tokens.

    Raises:
        DyntsError: the budget is too small.
    """
    return CompressionConfig(
        budget, local_window=max(1, round(0.4 * (budget - QUESTION_TOKENS))), retention_ratio=2 / 3
    )


def budget_for(share: float) -> int:
    """The budget that is this share of the mean length."""
    return round(share * MEAN_LENGTH)
