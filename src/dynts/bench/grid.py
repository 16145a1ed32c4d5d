"""Every engine on every piece of work, side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from dynts.bench.engines import TimedDynTS, TimedEngine, TimedStatic, TimedTransformers
from dynts.bench.generation import generate
from dynts.bench.machine import Machine
from dynts.bench.profile import Work, profile
from dynts.bench.summary import EngineSummary, summarize
from dynts.config import CompressionConfig
from dynts.decode.compress import Predictor
from dynts.methods import resolve_method
from dynts.models import input_device
from dynts.models.costs import step_cost
from dynts.predictor.model import ImportancePredictor


@dataclass(frozen=True, slots=True)
class Effort:
    """How carefully to measure.

    Args:
        mode: "profile" times steps at some cache lengths and adds up, "generate" generates it all.
        rounds: how often everything is measured.
        steps: timed at each cache length, in profile mode.
        points: cache lengths, in profile mode.
    """

    mode: Literal["profile", "generate"] = "profile"
    rounds: int = 3
    steps: int = 3
    points: int = 4


def engines(
    model: PreTrainedModel,
    methods: Sequence[str],
    schedule: CompressionConfig,
    predictor: Predictor | None = None,
    eager: bool = True,
    compiled: bool = False,
    plain: bool = False,
) -> list[TimedEngine]:
    """Return what is compared: what transformers offers, the reference first, then dynts with each method.

    Args:
        model: the model.
        methods: their names.
        schedule: the budget.
        predictor: for methods that need one; None takes an untrained one, which costs the same.
        eager: transformers with eager attention too.
        compiled: each method with compiled decode steps too, where that is possible.
        plain: on CUDA, where steps are recorded, each method with plain ones too.
    """
    device = input_device(model)
    compared = baselines(model, device, eager)
    for name in methods:
        method = resolve_method(name)
        needed = None
        if method.needs_predictor:
            needed = predictor or ImportancePredictor.for_model(model).to(model.device, model.dtype).eval()
        compared.append(TimedDynTS(name, model, schedule, method, needed))
        if compiled and method.evicts and not method.observes_attention:
            compared.append(TimedDynTS(f"{name}, compiled", model, schedule, method, needed, compile=True))
        if plain and method.evicts and device.type == "cuda":
            compared.append(TimedDynTS(f"{name}, plain", model, schedule, method, needed, compile=False))
    return compared


def baselines(model: PreTrainedModel, device: torch.device, eager: bool = True) -> list[TimedEngine]:
    """Return what transformers offers on a device, the reference first.

    On CUDA that is its own cache without cuDNN, which plans anew for every length, and with it, as torch has it by
    default; and its static cache.

    Args:
        model: the model.
        device: where it is.
        eager: with eager attention too.
    """
    if device.type == "cuda":
        found: list[TimedEngine] = [
            TimedTransformers("transformers, sdpa without cuDNN", model, "sdpa", cudnn=False),
            TimedTransformers("transformers, sdpa", model, "sdpa"),
            TimedStatic("transformers, static", model, "sdpa"),
        ]
    else:
        found = [TimedTransformers("transformers, sdpa", model, "sdpa")]
    if eager:
        found.append(TimedTransformers("transformers, eager", model, "eager"))
    return found


def measure(
    compared: Sequence[Sequence[TimedEngine]],
    works: Sequence[Work],
    effort: Effort,
    machine: Machine,
    done: Callable[[], None] = lambda: None,
) -> Iterator[list[EngineSummary]]:
    """Measure groups of engines on every piece of work.

    Args:
        compared: groups of engines of one model; the first of a group is its reference.
        works: what is generated.
        effort: how carefully.
        machine: limits of the device.
        done: called after each engine and round.

    Yields:
        The rows of a group and a piece of work.
    """
    for group in compared:
        cost = step_cost(group[0].model)
        for work in works:
            if effort.mode == "profile":
                yield summarize(profile(group, work, effort.rounds, effort.steps, effort.points, done), machine, cost)
            else:
                yield summarize(generate(group, work, effort.rounds, done), machine, cost)
