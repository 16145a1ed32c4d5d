"""All methods in every form, for the benchmarks that compare them."""

from collections.abc import Mapping

from dynts.decode.contender import Contender
from dynts.demo.compare import contenders
from dynts.predictor.model import ImportancePredictor

PUBLISHED = ", as published"
"""Ends the names of methods that would not keep the question by themselves, where they do not."""


def every_contender(predictors: Mapping[str, ImportancePredictor]) -> dict[str, Contender]:
    """By name: all with the question kept, shared and native, then those that were published without.

    Args:
        predictors: by label.
    """
    kept = {item.name: item for item in contenders(predictors, native=True)}
    published = {
        f"{item.name}{PUBLISHED}": item
        for item in contenders(predictors, native=True, protect_question=False)
        if item.method != kept[item.name].method
    }
    return kept | published
