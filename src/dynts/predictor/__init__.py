"""The importance predictor and its checkpoints."""

from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor

__all__ = ["ImportancePredictor", "PredictorConfig"]
