"""What the sections measure: a device, a model, and how large everything is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dynts.bench.engines import TimedDynTS
from dynts.bench.machine import Machine, measure_machine
from dynts.bench.profile import Work
from dynts.config import CompressionConfig, ModelSource
from dynts.models import random_model
from dynts.predictor.model import ImportancePredictor

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]
"""What is measured, and what measures it."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        shape: folder of the model's configuration, below `shapes`.
        dtype: of the weights.
        prompt: tokens of each question.
        schedule: of the steps and compactions that are timed.
        batches: rows of these.
        lengths: cached tokens at which steps are timed.
        slots: of the layer whose attention is timed, at the batches but the last, and 8.
        generations: pieces of work of whole generate calls and the budgets for them.
        trace: tokens of the trace that is labelled.
        answer: how many of them are the answer.
        sampled: rows and vocabulary of the logits that are sampled from.
    """

    shape: str
    dtype: torch.dtype
    prompt: int
    schedule: CompressionConfig
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    slots: tuple[int, ...]
    generations: tuple[tuple[Work, CompressionConfig], ...]
    trace: int
    answer: int
    sampled: tuple[int, int]


_SHORT, _LONG = CompressionConfig(200, 40, 0.4), CompressionConfig(1024, 256, 0.4)
MANY = 4096
LARGE = Sizes(
    shape="r1-distill-qwen-7b",
    dtype=torch.bfloat16,
    prompt=128,
    schedule=CompressionConfig(5000, 2000, 0.4),
    batches=(1, 32, 64),
    lengths=(600, 3000, 4900),
    slots=(5120, 16_384),
    generations=((Work(1, 128, 192), _SHORT), (Work(32, 128, 192), _SHORT), (Work(32, 128, MANY), _LONG)),
    trace=16_384,
    answer=512,
    sampled=(20, 151_936),
)
TINY = Sizes(
    shape="tiny",
    dtype=torch.float32,
    prompt=8,
    schedule=CompressionConfig(80, 20, 0.4),
    batches=(1, 2),
    lengths=(20, 50),
    slots=(64,),
    generations=((Work(2, 8, 30), CompressionConfig(30, 6, 0.4)),),
    trace=300,
    answer=40,
    sampled=(4, 1000),
)


class Bench:
    """A device, and what is measured on it.

    Args:
        device: where everything runs.
        sizes: how large it is.
        compile: whether `compile=True`, which takes half a minute a time, is measured too.
    """

    def __init__(self, device: torch.device, sizes: Sizes, compile: bool) -> None:
        self.device = device
        self.sizes = sizes
        self.compile = compile

    @cached_property
    def machine(self) -> Machine:
        """What the device can do."""
        return measure_machine(self.device, self.sizes.dtype)

    @cached_property
    def model(self) -> Any:
        """The model, made when it is first needed."""
        folder = Path(__file__).parents[1] / "shapes" / self.sizes.shape
        dtype = str(self.sizes.dtype).removeprefix("torch.")
        return random_model(ModelSource(str(folder), dtype=dtype, device=str(self.device)))

    @cached_property
    def predictor(self) -> ImportancePredictor:
        """An untrained predictor, which costs the same as a trained one."""
        return ImportancePredictor.for_model(self.model).to(self.device).eval()

    def dynts(self, name: str, schedule: CompressionConfig, compile: bool | None = None) -> TimedDynTS:
        """The method `dynts`, with steps of one kind."""
        return TimedDynTS(name, self.model, schedule, "dynts", self.predictor, compile)


def attempt(measure: Callable[[], Row]) -> Row:
    """Measure; whatever goes wrong is a result too, since the rest shall be measured all the same."""
    try:
        return measure()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
