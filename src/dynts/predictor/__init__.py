"""The importance predictor and its checkpoints. The names below load on first use: labels are known without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynts.predictor.config import PredictorConfig
    from dynts.predictor.model import ImportancePredictor

__all__ = ["ImportancePredictor", "PredictorConfig"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dynts.predictor import config, model

    return getattr(config if name == "PredictorConfig" else model, name)
