"""All methods in every form, for the benchmarks that compare them."""

from collections.abc import Mapping

from dynts.decode.arm import Arm
from dynts.demo.compare import every_arm
from dynts.predictor.model import ImportancePredictor

PUBLISHED = ", as published"
"""Ends the names of methods that would not keep the question by themselves, where they do not."""


def arms_by_name(predictors: Mapping[str, ImportancePredictor]) -> dict[str, Arm]:
    """Return all arms with the question kept, shared and native, then those that were published without, by name.

    Args:
        predictors: by label.
    """
    kept = {arm.name(question=False): arm for arm in every_arm(predictors, native=True)}
    published = {
        f"{arm.name()}{PUBLISHED}": arm
        for arm in every_arm(predictors, native=True, protect_question=False)
        if arm.method != kept[arm.name()].method
    }
    return kept | published
