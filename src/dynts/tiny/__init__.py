"""A tiny reasoning model that ships with dynts, with its predictors and its task.

0.8 million parameters, trained from nothing on one synthetic task (`dynts.tiny.task`): a demonstration and a test bed
that runs anywhere in seconds. It is no evidence about large reasoning models. Only the demo, the tests and the docs use
it. The recipe that made it lies outside the package (docs/explanation/embedded-model.md).
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynts.predictor.model import ImportancePredictor

LABELS = ("answer", "future")
"""Of the predictors that ship."""
WEIGHTS = Path(__file__).parent / "weights"
"""The model's folder, as any command takes it for --model; its predictors are the sub-folders `answer` and `future`."""


def load_tiny_model() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the embedded model and its tokenizer, on the CPU."""
    from dynts.models import load_model

    return load_model(WEIGHTS)


def load_tiny_predictor(label: str = "answer") -> "ImportancePredictor":
    """Load the embedded predictor of a label: "answer" (the paper's) or "future"."""
    from dynts.predictor.model import ImportancePredictor

    return ImportancePredictor.from_pretrained(WEIGHTS / label)
