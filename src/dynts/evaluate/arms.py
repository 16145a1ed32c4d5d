"""The arms of an evaluation: every benchmark with every method and budget that was asked for."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynts.cache.method import Granularity
from dynts.collect.plan import Plan, collect_settings, compression_settings
from dynts.config import CompressionConfig
from dynts.engines.engine import Compression
from dynts.errors import DyntsError
from dynts.methods import Method, check_predictor, resolve_method
from dynts.methods.variants import scored_variants
from dynts.predictor.config import PredictorConfig
from dynts.traces.benchmarks import Benchmark
from dynts.traces.problems import Survey


@dataclass(frozen=True, slots=True)
class ConfiguredMethod:
    """A method with its settings, before it has a budget.

    Args:
        name: of the method.
        method: with its settings.
        predictor: folder or id of an importance predictor, for methods that need one.
        label: which label the predictor was trained on.
    """

    name: str
    method: Method
    predictor: str | None = None
    label: str | None = None

    @property
    def traits(self) -> list[str]:
        """What tells it from others of that name, such as "native"."""
        kept = self.method.protect_question and not resolve_method(self.name).protect_question
        chosen = {
            f"{self.label} label": self.label is not None,
            "native": self.method.granularity == "native",
            "question kept": kept,
        }
        return [trait for trait, applies in chosen.items() if applies]

    def __str__(self) -> str:
        return ", ".join([self.name, *self.traits])


def configured_methods(
    names: Sequence[str],
    granularities: Collection[Granularity],
    predictors: Mapping[str, PredictorConfig],
    *,
    protect_question: bool,
) -> list[ConfiguredMethod]:
    """The methods of these names, those that need a predictor once for each.

    Args:
        names: of methods.
        granularities: "shared", "native" or both, for methods that have the choice.
        predictors: what each says about itself, by folder or id.
        protect_question: keep the question where a method would not by itself.

    Raises:
        DyntsError: an unknown method, or one that needs a predictor where there is none.
    """
    found = []
    for name in names:
        check_predictor(name, resolve_method(name), predictors or None)
        for method, predictor in scored_variants(name, granularities, predictors, protect_question=protect_question):
            label = None if predictor is None else predictors[predictor].label
            found.append(ConfiguredMethod(name, method, predictor, label))
    return found


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One method with one budget on one benchmark.

    Args:
        benchmark: what to solve.
        method: with its settings.
        plan: the samples to take, under which compression.
        found: the survey of the benchmark's problems.
    """

    benchmark: Benchmark
    method: ConfiguredMethod
    plan: Plan
    found: Survey

    @property
    def folder(self) -> Path:
        """Where it is kept, below the folder of all results."""
        settings = compression_settings(self.plan.compression)
        # a predictor that was moved is the same: the manifest then says which path to repeat
        if settings["predictor_files"] is not None:
            del settings["predictor"]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        parts = [self.method.name, *(trait.removesuffix(" label").replace(" ", "-") for trait in self.method.traits)]
        schedule = self.plan.compression.schedule
        if schedule is not None:
            parts += [f"b{schedule.budget}", f"w{schedule.local_window}", f"r{schedule.retention_ratio:g}"]
        return Path(self.benchmark.name, "-".join([*parts, digest]))

    def settings(self, thinking: bool, **model: Any) -> dict[str, Any]:
        """What determines the samples, for the manifest.

        Args:
            thinking: whether the answer is what follows the thinking.
            model: arguments of `collect_settings` that tell which model answers, and how.
        """
        return {
            **collect_settings(self.plan, self.found, **model),
            "kind": "eval",
            "benchmark": self.benchmark.name,
            "benchmark_version": self.benchmark.version,
            "label": str(self.method),
            "thinking": thinking,
        }


def plan_arms(
    benchmark: Benchmark,
    methods: Sequence[ConfiguredMethod],
    configs: Sequence[CompressionConfig],
    plan: Plan,
    found: Survey,
) -> Iterator[ArmPlan]:
    """All methods with all budgets on one benchmark; the full cache has no budget, and comes once."""
    for method in methods:
        arms: dict[CompressionConfig | None, ArmPlan] = {}
        for config in configs:
            compression = Compression(method.method, config, method.predictor)
            arms.setdefault(
                compression.schedule, ArmPlan(benchmark, method, replace(plan, compression=compression), found)
            )
        yield from arms.values()


_COMPETITIONS = ("aime24", "aime25", "amc23")
_OTHERS = ("gk23en", "math500")

PAPER_SETTINGS = {
    "r1-qwen-7b": {
        **dict.fromkeys(_COMPETITIONS, CompressionConfig(5000, 2000, 0.4)),
        "gpqa-diamond": CompressionConfig(5000, 2000, 0.4),
        **dict.fromkeys(_OTHERS, CompressionConfig(3000, 1500, 0.4)),
    },
    "r1-llama-8b": {
        **dict.fromkeys(_COMPETITIONS, CompressionConfig(5000, 2000, 0.3)),
        "gpqa-diamond": CompressionConfig(5000, 2500, 0.3),
        **dict.fromkeys(_OTHERS, CompressionConfig(3000, 1000, 0.3)),
    },
}
"""For DeepSeek-R1-Distill-Qwen-7B and DeepSeek-R1-Distill-Llama-8B."""


def paper_config(family: str, benchmark: str) -> CompressionConfig:
    """The paper's budget for a benchmark.

    Raises:
        DyntsError: the paper has no such model family or benchmark.
    """
    if family not in PAPER_SETTINGS:
        raise DyntsError(f"unknown paper settings {family!r}: choose from {', '.join(PAPER_SETTINGS)}")
    if benchmark not in PAPER_SETTINGS[family]:
        raise DyntsError(
            f"the paper has no settings for benchmark {benchmark!r}, only for {', '.join(PAPER_SETTINGS[family])}: "
            "give --budget, --local-window and --retention-ratio instead"
        )
    return PAPER_SETTINGS[family][benchmark]
