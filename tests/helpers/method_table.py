"""Every method in one table, from which the tests of methods are parametrised: a new method adds one row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from decoding import random_predictor
from dynts.methods import METHODS, Method

SEPARATORS = (10, 20, 30, 40)
NATIVE: dict[str, Any] = {"granularity": "native"}
QUESTION: dict[str, Any] = {"protect_question": True}


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        defaults: its settings, as docs/reference/methods.md has them.
        variants: settings that it is tried with. The reference takes them by the same names, and for a seed what it
            draws.
    """

    defaults: dict[str, Any]
    variants: tuple[dict[str, Any], ...] = ({},)


TABLE: dict[str, Row] = {
    "full": Row({}),
    "dynts": Row({"granularity": "shared", "protect_question": True}, ({}, NATIVE)),
    "dynts-all": Row({"granularity": "shared", "protect_question": False}, ({}, NATIVE, QUESTION)),
    "dynts-random": Row({"seed": 0, "protect_question": True}, ({"seed": 3},)),
    "dynts-bottom": Row({"granularity": "shared", "protect_question": True}),
    "window": Row({"protect_question": False}, ({}, QUESTION)),
    "streaming-llm": Row({"n_sink": 4, "protect_question": False}, ({"n_sink": 3},)),
    "question-window": Row({"protect_question": True}),
    "sepllm": Row(
        {"separators": None, "n_initial": 4, "protect_question": False},
        ({"separators": SEPARATORS},),
    ),
    "h2o": Row({"granularity": "shared", "protect_question": False}, ({}, NATIVE, QUESTION)),
    "snapkv": Row(
        {"granularity": "shared", "protect_question": False, "window": 32, "kernel": 7},
        ({}, NATIVE | {"window": 5}),
    ),
    "rkv": Row(
        {"granularity": "shared", "protect_question": False, "window": 8, "kernel": 7, "mix": 0.1},
        ({}, NATIVE | {"mix": 0.5}, NATIVE | QUESTION),
    ),
    "random": Row(
        {"seed": 0, "protect_question": True, "granularity": "native"},
        ({"granularity": "shared", "seed": 3}, NATIVE | {"seed": 4}),
    ),
    "keydiff": Row({"granularity": "shared", "protect_question": False}, ({}, NATIVE, NATIVE | QUESTION)),
    "vase": Row(
        {"granularity": "shared", "protect_question": False, "seed": 0, "rank": 20, "n_sink": 4},
        ({"seed": 3}, NATIVE | {"rank": 5, "n_sink": 2}),
    ),
}


@dataclass(frozen=True)
class Case:
    """A method as it is tried, and what makes the reference do the same.

    Attributes:
        method: with its settings.
        options: of `reference.reference_generate`.
    """

    method: Method
    options: dict[str, Any]


PREDICTOR = random_predictor()
_NATIVE_PREDICTOR = random_predictor(native=True)


def _native_scores(hidden: torch.Tensor) -> torch.Tensor:
    """By the definition of the network: the outputs of its last matrix, one layer's heads after the other's."""
    first, second, third = _NATIVE_PREDICTOR.parameters()
    softplus = torch.nn.functional.softplus
    scores = softplus(softplus(softplus(hidden @ first.T) @ second.T) @ third.T)
    return torch.stack([scores[:, 0:2], scores[:, 2:4]], dim=1)


def _projections(seed: int, rank: int, read: int) -> torch.Tensor:
    """What `vase` draws for a row that has read so many tokens, of two layers with heads of size 8."""
    return torch.from_numpy(np.random.default_rng((seed, read)).normal(size=(2, 8, rank)) / rank**0.5)


def _case(name: str, settings: dict[str, Any]) -> Case:
    method = METHODS[name](**settings)
    options, native = {"method": name, **settings}, method.granularity == "native"
    if name == "vase":
        seed, rank = options.pop("seed", 0), options.pop("rank", 20)
        options["projections"] = lambda read: _projections(seed, rank, read)
    elif "seed" in options:
        generator = torch.Generator().manual_seed(options.pop("seed"))
        options["random_scores"] = torch.rand(512, *((2, 2) if native else ()), generator=generator)
    if method.needs_predictor:
        options["predictor"] = _native_scores if native else PREDICTOR
    return Case(method, options)


def _title(name: str, settings: dict[str, Any]) -> str:
    chosen = {"native": settings.get("granularity") == "native", "question": settings.get("protect_question")}
    return ", ".join([name, *(word for word, given in chosen.items() if given)])


CASES = {_title(name, settings): _case(name, settings) for name, row in TABLE.items() for settings in row.variants}
"""By names such as "rkv, native, question"."""


THRESHOLDS = {
    "dynts": 1.06,
    "dynts, native": 1.6,
    "dynts-all": 1.0,
    "dynts-all, native": 1.2,
    "dynts-random": 0.5,
    "h2o": 1.2,
    "h2o, native": 1.8,
    "snapkv": 0.12,
    "rkv, native": 0.04,
    "random": 0.6,
    "random, native": 0.9,
}
"""Of tiny models' scores some lie above these, by names of `CASES`."""


def named(method: str | Method) -> Method:
    """A method, or the one of that name with its defaults; told what a tokenizer would tell."""
    if isinstance(method, Method):
        return method
    return METHODS[method](**({"separators": SEPARATORS} if "separators" in TABLE[method].defaults else {}))


EVERY = [name for name in CASES if not name.endswith("question")]
"""Every method in each of its granularities."""
