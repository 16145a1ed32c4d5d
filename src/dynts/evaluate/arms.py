"""The arms of an evaluation: every benchmark with every method and budget that was asked for."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynts.collect.plan import Plan, arm_settings, collect_settings
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.errors import DyntsError
from dynts.traces.benchmarks import Benchmark
from dynts.traces.problems import Survey


@dataclass(frozen=True, slots=True)
class PlannedArm:
    """An arm on one benchmark.

    Args:
        benchmark: what to solve.
        plan: the samples to take, and the arm.
        found: the survey of the benchmark's problems.
    """

    benchmark: Benchmark
    plan: Plan
    found: Survey

    @property
    def arm(self) -> Arm[str]:
        """By which to decode."""
        return self.plan.arm

    @property
    def folder(self) -> Path:
        """Where it is kept, below the folder of all results."""
        settings = arm_settings(self.arm)
        # a predictor that was moved is the same: the manifest then says which path to repeat
        if settings["predictor_files"] is not None:
            del settings["predictor"]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        traits = (trait.removesuffix(" label").replace(" ", "-") for trait in self.arm.traits())
        parts = [self.arm.method.name, *traits]
        schedule = self.arm.schedule
        if schedule is not None:
            parts += [f"b{schedule.budget}", f"w{schedule.local_window}", f"r{schedule.retention_ratio:g}"]
        return Path(self.benchmark.name, "-".join([*parts, digest]))

    def settings(self, thinking: bool, **model: Any) -> dict[str, Any]:
        """Return what determines the samples, for the manifest.

        Args:
            thinking: whether the answer is what follows the thinking.
            model: arguments of `collect_settings` that tell which model answers, and how.
        """
        return {
            **collect_settings(self.plan, self.found, **model),
            "kind": "eval",
            "benchmark": self.benchmark.name,
            "benchmark_version": self.benchmark.version,
            "label": self.arm.name(),
            "thinking": thinking,
        }


def plan_arms(
    benchmark: Benchmark, arms: Sequence[Arm[str]], configs: Sequence[CompressionConfig], plan: Plan, found: Survey
) -> Iterator[PlannedArm]:
    """Plan all arms with all budgets on one benchmark; the full cache has no budget, and comes once.

    Args:
        benchmark: what to solve.
        arms: without a budget.
        configs: the budgets.
        plan: the samples to take, of any arm.
        found: the survey of the benchmark's problems.
    """
    for arm in arms:
        chosen: dict[CompressionConfig | None, Arm[str]] = {}
        for config in configs:
            with_budget = replace(arm, config=config)
            chosen.setdefault(with_budget.schedule, with_budget)
        for with_budget in chosen.values():
            yield PlannedArm(benchmark, replace(plan, arm=with_budget), found)


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
    """Return the paper's budget for a benchmark.

    Args:
        family: of the model, a key of `PAPER_SETTINGS`.
        benchmark: its name.

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
