"""Profile mode: time a few steps at a few cache lengths, and add up what a whole generation would take.

A step's time changes smoothly with the cache length, so the steps between the lengths measured are interpolated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
import psutil
import torch

from dynts.bench.engines import TimedEngine
from dynts.bench.machine import Busy, gpu_work
from dynts.cache.lengths import attended_tokens, cache_lengths

Measured = TypeVar("Measured")


def in_rounds(
    engines: Sequence[TimedEngine],
    rounds: int,
    measure: Callable[[TimedEngine, int], Measured],
    done: Callable[[], None],
) -> list[list[Measured]]:
    """Measure each engine once a round, in alternating order, so that drift hits all alike.

    Args:
        engines: what is compared.
        rounds: how often.
        measure: measures an engine that is running, given the number of the round.
        done: called after each engine and round.

    Returns:
        One list a round, in the order of `engines`.
    """
    results = []
    for number in range(rounds):
        found = {}
        for engine in list(engines) if number % 2 == 0 else list(reversed(engines)):
            with engine.running():
                found[engine.name] = measure(engine, number)
            done()
        results.append([found[engine.name] for engine in engines])
    return results


_WARM_UP = 1
_FIRST = 3
"""Steps at the first length that do not count: steps are compiled at the first one, and recorded by the third."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is generated.

    Args:
        batch: rows.
        prompt: tokens of each question.
        generated: tokens generated in each row.
    """

    batch: int
    prompt: int
    generated: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One engine in one round.

    Attributes:
        engine: its name.
        budget: most cached tokens of a row; None where nothing is evicted.
        work: what was generated.
        lengths: cached tokens at which steps were timed.
        step_seconds: median step at each of them.
        decode_seconds: of all decode steps, interpolated; compactions left out.
        prefill_seconds: of the question.
        compactions: how many there are.
        compaction_seconds: of one, by part.
        first_seconds: of the first step, in which steps are recorded or compiled.
        busy: what a GPU does in a step at the longest length measured; None on another device.
        kv_bytes: allocated for keys and values at the longest length measured.
        memory_bytes: at that time, of the whole process (CPU), or the peak of the device (CUDA).
    """

    engine: str
    budget: int | None
    work: Work
    lengths: list[int]
    step_seconds: list[float]
    decode_seconds: float
    prefill_seconds: float
    compactions: int
    compaction_seconds: dict[str, float]
    first_seconds: float
    busy: Busy | None
    kv_bytes: int
    memory_bytes: int

    @property
    def total_seconds(self) -> float:
        """Decode steps and compactions."""
        return self.decode_seconds + self.compactions * sum(self.compaction_seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all rows over the time of decode steps and compactions."""
        return self.work.batch * (self.work.generated - 1) / self.total_seconds


def profile(
    engines: Sequence[TimedEngine], work: Work, rounds: int, steps: int, points: int, done: Callable[[], None]
) -> list[list[Profile]]:
    """Measure engines side by side, one list of profiles a round.

    Args:
        engines: what is compared.
        work: what is generated.
        rounds: how often.
        steps: timed at each length.
        points: how many lengths, evenly spaced over those that occur.
        done: called after each engine and round.
    """
    return in_rounds(engines, rounds, lambda engine, _: profile_once(engine, work, steps, points), done)


def profile_once(engine: TimedEngine, work: Work, steps: int, points: int) -> Profile:
    """Measure one engine once. Call within `engine.running()`; arguments as in `profile`."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    compactions = cache_lengths(work.prompt, work.generated, engine.schedule).compactions
    live = attended_tokens(work.prompt, work.generated, compactions).tolist()
    lengths = lengths_to_measure(live, _FIRST + steps, points)
    seconds: list[float] = []
    first = 0.0
    cache = engine.new_cache(work.prompt + work.generated)
    for length in lengths:
        warm_up = _WARM_UP if seconds else _FIRST
        engine.fill(cache, work.prompt, length - warm_up - 1, work.batch)
        times = [engine.step(cache, work.batch) for _ in range(warm_up + steps)]
        first = first or times[0]
        seconds.append(median(times[warm_up:]))
    with gpu_work(engine.device) as busy:
        engine.step(cache, work.batch)
    kv_bytes, memory = engine.kv_bytes(cache), _memory(engine.device)
    del cache
    return Profile(
        engine=engine.name,
        budget=engine.budget,
        work=work,
        lengths=lengths,
        step_seconds=seconds,
        decode_seconds=float(np.interp(live, lengths, seconds).sum()),
        prefill_seconds=engine.prefill(work.prompt, work.batch),
        compactions=len(compactions),
        compaction_seconds=engine.compaction(work.prompt, work.batch) if compactions else {},
        first_seconds=first,
        busy=busy[0] if busy else None,
        kv_bytes=kv_bytes,
        memory_bytes=memory,
    )


def lengths_to_measure(live: Sequence[int], steps: int, points: int) -> list[int]:
    """Return evenly spaced lengths, from the shortest that occurs to the longest from which no compaction interrupts.

    Args:
        live: cached tokens at each decode step.
        steps: that are timed from a length on.
        points: how many lengths.
    """
    # the first step at a length of n attends to n tokens, and needs n - 1 in the cache and `steps` places
    lowest = min(live) + steps
    highest = max(lowest, max(live) - steps - 1)
    fitting = 1 + (highest - lowest) // (steps + 2)
    return [round(length) for length in np.linspace(lowest, highest, min(points, fitting))]


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
