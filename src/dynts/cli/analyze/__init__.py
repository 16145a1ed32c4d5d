"""`dynts analyze`: look at what the method rests on."""

from dynts.cli.analyze.importance import importance
from dynts.cli.analyze.pareto import pareto
from dynts.cli.analyze.predictor import predictor

__all__ = ["importance", "pareto", "predictor"]
