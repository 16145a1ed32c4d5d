"""Decode steps and whole `generate` calls, of dynts and of what transformers offers."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from statistics import median

import torch

from dynts.bench.engines import TimedEngine, TimedStatic, TimedTransformers
from dynts.bench.generation import generate as measure_generate
from dynts.bench.machine import gpu_work
from dynts.bench.profile import Work, profile
from dynts.config import CompressionConfig
from dynts.models.costs import step_cost
from gpu_sections.bench import MANY, Bench, Case, Row
from gpu_sections.parity import noted

_WARM_UP, _STEPS = 3, 8


def steps(bench: Bench) -> Iterator[Case]:
    """Decode steps at some cached lengths, in ms (median of 8), the host's part and the cache's bookkeeping included.

    The floor is the time that reading the weights and the live cache takes at the read bandwidth. "first" is the first
    step, in seconds, in which steps are recorded or compiled; "recorded" is how many were, and "said" why not. "busy"
    and "kernels" are what the GPU does in a step at the last length; "waits" is how often the host waits for it. "KV"
    counts the bytes behind keys and values at that length.
    """
    engines = compared(bench, bench.sizes.schedule)
    del engines[STATIC]  # its steps are those of the section `generate`
    for batch in bench.sizes.batches:
        yield {"engine": FLOOR, "batch": batch}, partial(_floor, bench, batch)
    for engine, batch in product(engines.values(), bench.sizes.batches):
        yield {"engine": engine.name, "batch": batch}, partial(_steps, bench, engine, batch)


FLOOR = "floor"
DEFAULT, PLAIN, COMPILED = "dynts", "dynts, compile=False", "dynts, compile=True"
DYNAMIC, DYNAMIC_CUDNN, STATIC = "DynamicCache without cuDNN", "DynamicCache with cuDNN", "static cache"


def compared(bench: Bench, schedule: CompressionConfig) -> dict[str, TimedEngine]:
    """What is compared, by name: dynts and what transformers offers, those that take long to start or to run last."""
    model = bench.model
    engines = [
        bench.dynts(DEFAULT, schedule),
        TimedTransformers(DYNAMIC, model, "sdpa", cudnn=False),
        bench.dynts(PLAIN, schedule, compile=False),
        TimedTransformers(DYNAMIC_CUDNN, model, "sdpa"),
        *([bench.dynts(COMPILED, schedule, compile=True)] if bench.compile else []),
        TimedStatic(STATIC, model, "sdpa"),
    ]
    return {engine.name: engine for engine in engines}


def _floor(bench: Bench, batch: int) -> Row:
    cost = step_cost(bench.model)
    floors = {length: bench.machine.floor(cost.read_bytes(batch, length), 0) for length in bench.sizes.lengths}
    return {f"ms at {length}": 1e3 * floor for length, floor in floors.items()}


def _steps(bench: Bench, engine: TimedEngine, batch: int) -> Row:
    row: Row = {}
    with noted(bench.device) as how, engine.running():
        cache = engine.new_cache()
        for length in bench.sizes.lengths:
            engine.fill(cache, bench.sizes.prompt, length, batch)
            times = [engine.step(cache, batch) for _ in range(_WARM_UP + _STEPS)]
            row.setdefault("first s", times[0])
            row[f"ms at {length}"] = 1e3 * median(times[_WARM_UP:])
        with gpu_work(bench.device) as found:
            engine.step(cache, batch)
        waits = _waits(partial(engine.step, cache, batch), bench.device)
        taken, tokens = engine.kv_bytes(cache), bench.sizes.lengths[-1] + _WARM_UP + _STEPS + 1 + (waits is not None)
    for busy in found:
        row |= {"busy ms": 1e3 * busy.seconds, "kernels": busy.kernels}
    computed = batch * (engine.budget or tokens) * step_cost(bench.model).token_bytes
    row |= {"waits": waits, "recorded": how.recordings, "said": "; ".join(how.said)}
    return row | {"KV GB": taken / 1e9, "KV over computed": taken / computed}


def _waits(step: Callable[[], object], device: torch.device) -> int | None:
    """Count how often the host waits for the device in a step; None where that is not known."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")  # says once that it is a prototype
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(heard)


def generate(bench: Bench) -> Iterator[Case]:
    """Whole `generate` calls, greedy, prompt and transformers' loop included, after one that ends within few tokens.

    "first" is the first decode step of that one, in seconds. "over its steps" is the call over what its prompt, steps
    and compactions take when they are timed one by one.
    """
    for name in (DEFAULT, DYNAMIC, STATIC, COMPILED, DYNAMIC_CUDNN):
        for work, schedule in reversed(bench.sizes.generations):
            engine = compared(bench, schedule).get(name)
            # a cache that grows takes minutes for so many tokens
            if engine is not None and (work.generated < MANY or name in (DEFAULT, STATIC)):
                case = {"engine": name, "batch": work.batch, "tokens": work.generated, "budget": schedule.budget}
                yield case, partial(_generate, engine, work)


def _generate(engine: TimedEngine, work: Work) -> Row:
    with noted(engine.device) as how:
        (found,) = measure_generate([engine], work, rounds=1, done=lambda: None)[0]
    row = {
        "first s": found.first_seconds,
        "ms a token": 1e3 * found.total_seconds / work.generated,
        "tokens/s": found.tokens_per_second,
        "KV GB": found.kv_bytes / 1e9,
        "recorded": how.recordings,
        "said": "; ".join(how.said),
    }
    if engine.name == DEFAULT:
        (parts,) = profile([engine], work, rounds=1, steps=4, points=3, done=lambda: None)[0]
        row["over its steps"] = found.total_seconds / (parts.prefill_seconds + parts.total_seconds)
    return row
