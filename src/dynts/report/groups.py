"""Arms that may be compared: the same model, sampling and problems."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dynts.config import CompressionConfig, ModelSource
from dynts.errors import DyntsError
from dynts.evaluate.metrics import ArmMetrics
from dynts.evaluate.results import ArmResults
from dynts.methods import METHODS, Method
from dynts.models import load_config, parse_dtype
from dynts.models.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Model:
    """A model's shape and the type of the numbers in its cache."""

    shape: ModelShape
    dtype: torch.dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that grow with every cached token."""
        return self.shape.kv_bytes_per_token(self.dtype.itemsize)


def find_model(settings: Mapping[str, Any]) -> Model | None:
    """Find the model that a manifest's settings name.

    None if its configuration cannot be read here, or its FLOPs cannot be counted.
    """
    try:
        config = load_config(ModelSource.from_settings(settings))
        shape = ModelShape.of(config)
        shape.flops_per_token(1)
    except DyntsError:
        return None
    named = settings.get("dtype")
    dtype = parse_dtype(named) if named not in (None, "auto") else config.get_text_config().dtype
    return Model(shape, dtype if isinstance(dtype, torch.dtype) else torch.float32)


_OF_AN_ARM = ("method", "label", "config", "predictor", "predictor_files")
"""Settings in which the arms of a comparison may differ."""


@dataclass(frozen=True, slots=True)
class EvaluatedArm:
    """An arm with its figures."""

    arm: ArmResults
    metrics: ArmMetrics

    @property
    def method(self) -> str:
        """As shown."""
        return self.arm.method

    @property
    def config(self) -> CompressionConfig | None:
        """The budget; None for the full cache."""
        return self.arm.config


@dataclass(frozen=True, slots=True)
class Group:
    """Entries that may be compared, the full cache first.

    Attributes:
        benchmark: what was asked.
        slug: for file names; no other group of the report has it.
        model: what is known of the model; None if it cannot be read here.
        entries: at least one.
    """

    benchmark: str
    slug: str
    model: Model | None
    entries: list[EvaluatedArm]

    @property
    def full(self) -> EvaluatedArm | None:
        """The full cache, if it was evaluated."""
        return next((entry for entry in self.entries if entry.config is None), None)

    @property
    def compressed(self) -> list[EvaluatedArm]:
        """The entries with a budget."""
        return [entry for entry in self.entries if entry.config is not None]

    @property
    def methods(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(entry.method for entry in self.entries))


def comparable(arms: Iterable[ArmResults]) -> list[list[ArmResults]]:
    """Group the arms that may be compared, each group in the order of the tables.

    They have benchmark, problems and all settings but the method's own in common.

    Raises:
        DyntsError: an arm is there twice.
    """
    found: dict[str, list[ArmResults]] = {}
    for arm in sorted(arms, key=_order):
        settings = {name: value for name, value in arm.manifest["settings"].items() if name not in _OF_AN_ARM}
        # as many problems of the same data, drawn with the same seed, are the same problems
        key = json.dumps([arm.benchmark, settings, arm.manifest.get("problems")], sort_keys=True)
        group = found.setdefault(key, [])
        if twin := next((other for other in group if (other.method, other.config) == (arm.method, arm.config)), None):
            raise DyntsError(
                f"{arm.method}, {describe_config(arm.config)}, on {arm.benchmark} is there twice, in {twin.folder} and "
                f"in {arm.folder}: leave one of them out"
            )
        group.append(arm)
    return [found[key] for key in sorted(found)]


def shared_config(entries: Sequence[EvaluatedArm]) -> CompressionConfig:
    """Return the budget, window and ratio that most arms have; of several the one with the largest budget.

    Args:
        entries: with a budget, at least one.
    """
    configs = Counter(entry.config for entry in entries if entry.config is not None)
    return max(configs, key=lambda config: (configs[config], _sizes(config)))


def describe_config(config: CompressionConfig | None) -> str:
    """Return a budget in words."""
    return "no budget" if config is None else config.describe()


def missing_samples(arm: ArmResults) -> int:
    """Return how many samples an arm's evaluation still lacks."""
    return max(0, int(arm.manifest.get("total", 0)) - len(arm.samples))


def _sizes(config: CompressionConfig | None) -> tuple[float, ...]:
    """Return what budgets are sorted by. One without a threshold keeps the most, and so does one without a budget."""
    if config is None:
        return ()
    threshold = -math.inf if config.threshold is None else config.threshold
    return config.budget, config.local_window, config.retention_ratio, -threshold


def _order(arm: ArmResults) -> tuple[Any, ...]:
    kinds: list[type[Method] | None] = [*METHODS.values()]
    return (
        arm.benchmark,
        arm.config is not None,
        [-value for value in _sizes(arm.config)],
        kinds.index(arm.kind) if arm.kind in kinds else len(kinds),
        arm.plain_first,
        str(arm.folder),
    )
