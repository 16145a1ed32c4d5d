"""What is to be collected, and the manifest that pins it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.engines.engine import FULL_CACHE, Request
from dynts.errors import DyntsError
from dynts.traces.problems import Survey, read_problems, survey
from dynts.traces.source import ProblemSource


@dataclass(frozen=True, slots=True)
class Plan:
    """Which samples of which problems to collect.

    Args:
        source: where the problems are.
        sampling: how to draw tokens; its seed is that of the run.
        samples: of each problem.
        limit: how many problems; None takes all.
        arm: by which to decode.

    Raises:
        DyntsError: no samples, or several equal ones.
    """

    source: ProblemSource
    sampling: Sampling
    samples: int = 1
    limit: int | None = None
    arm: Arm[str] = FULL_CACHE

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DyntsError(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise DyntsError(f"{self.samples} samples at temperature 0 would be equal: raise it, or take one sample")

    def survey(self) -> Survey:
        """See `dynts.traces.problems.survey`."""
        return survey(self.source, self.limit, self.sampling.seed)

    def requests(self, found: Survey, length: Callable[[str], int] = len) -> Iterator[Request]:
        """Yield a request for each sample of each chosen problem, those with long questions first.

        Long questions tend to have long answers, and what begins last should not last longest: then most rows of an
        engine would wait for a few (`benchmarks/order_of_problems.py`).

        Args:
            found: the survey.
            length: of a question; the tokens say more of the answer than the characters, which are the default.
        """
        problems = read_problems(self.source, found.chosen)
        for problem in sorted(problems, key=lambda problem: length(problem.question), reverse=True):
            for sample in range(self.samples):
                yield Request(problem, sample, self.sampling.seed, self.arm)


def collect_settings(
    plan: Plan,
    found: Survey,
    source: ModelSource,
    engine: str,
    engine_args: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what determines the traces; how many of them are wanted, the batch and the device do not.

    Args:
        plan: which samples.
        found: the problems.
        source: the model.
        engine: name of what generates.
        engine_args: its further arguments.
    """
    return {
        "kind": "collect",
        **source.settings(),
        "model_files": model_files(source.name),
        "engine": engine,
        "engine_args": engine_args or {},
        **arm_settings(plan.arm),
        "sampling": asdict(plan.sampling),
        **source.chat.settings(),
        "source": asdict(plan.source),
        "data_sha256": found.sha256,
    }


def arm_settings(arm: Arm[str]) -> dict[str, Any]:
    """Return method, budget and predictor, as the manifest records them."""
    schedule, predictor = arm.schedule, arm.predictor
    return {
        "method": {"name": type(arm.method).__name__, **asdict(arm.method)},  # type: ignore[call-overload]
        "config": None if schedule is None else schedule.settings(),
        "predictor": predictor,
        "predictor_files": None if predictor is None else model_files(predictor),
    }


def collect_facts(plan: Plan, found: Survey) -> dict[str, Any]:
    """Return what the manifest records besides; the numbers are those of the last run.

    Args:
        plan: which samples.
        found: the survey of the problems.
    """
    return {
        "problems": len(found.chosen),
        "samples": plan.samples,
        "total": len(found.chosen) * plan.samples,
        "without_gold": found.without_gold,
        "repeated": found.repeated,
    }


def model_files(model: str) -> str | None:
    """Hash the configuration of a local model, and the names and sizes of its files; return None for one on the Hub."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".gguf", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        elif path.name in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
