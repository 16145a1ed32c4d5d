"""Generation mode: time whole `generate` calls."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import Cache, StoppingCriteria, StoppingCriteriaList

from dynts.bench.engines import TimedEngine
from dynts.bench.machine import Busy, gpu_work, seconds, synchronize
from dynts.bench.profile import Work, in_rounds
from dynts.cache.interface import CACHE
from dynts.decode.checkpoint import plain_search

_SETTLED = 4
"""Tokens after which steps are compiled and recorded."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One engine in one round.

    Attributes:
        engine: its name.
        budget: most cached tokens of a row; None where nothing is evicted.
        work: what was generated.
        total_seconds: of the `generate` call, prefill included.
        kv_bytes: allocated for keys and values at the end.
        first_seconds: of the first decode step, in an earlier call that recorded or compiled steps; None if there was
            none.
        busy: what a GPU did in a step of that call; None on another device.
    """

    engine: str
    budget: int | None
    work: Work
    total_seconds: float
    kv_bytes: int
    first_seconds: float | None = None
    busy: Busy | None = None

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of all rows over wall time."""
        return self.work.batch * self.work.generated / self.total_seconds


def generate(
    engines: Sequence[TimedEngine], work: Work, rounds: int, done: Callable[[], None]
) -> list[list[Generation]]:
    """Greedy generation from random prompts, the same for all engines; one list a round.

    Args:
        engines: what is compared.
        work: what is generated.
        rounds: how often.
        done: called after each engine and round.
    """
    return in_rounds(engines, rounds, lambda engine, number: _started_once(engine, work, seed=number), done)


def generate_once(engine: TimedEngine, work: Work, seed: int) -> Generation:
    """Generate once with one engine. Call within `engine.running()`.

    Args:
        engine: it.
        work: what is generated.
        seed: of the prompts.
    """
    cache = engine.new_cache(work.prompt + work.generated)
    taken = seconds(lambda: _generate(engine, work, seed, cache), engine.device)
    return Generation(engine.name, engine.budget, work, taken, engine.kv_bytes(cache))


class FirstSteps(StoppingCriteria):
    """Times the first decode step of a `generate` call, watches the GPU in a later one, and ends the call.

    Args:
        device: of the model.
        watch: where the watching of the GPU is entered.

    Attributes:
        seconds: of the first decode step; None before.
        found: what the GPU did in a later one; nothing before, and on another device.
    """

    def __init__(self, device: torch.device, watch: ExitStack) -> None:
        self.device = device
        self.watch = watch
        self.seconds: float | None = None
        self.found: list[Busy] = []
        self._tokens = 0
        self._since = 0.0

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Return that all rows have ended, once enough was seen. input_ids: int64 [rows, columns]."""
        self._tokens += 1
        synchronize(self.device)
        if self._tokens == 2:  # the first token comes from the prompt
            self.seconds = time.perf_counter() - self._since
        elif self._tokens == _SETTLED:
            self.found = self.watch.enter_context(gpu_work(self.device))
        elif self._tokens > _SETTLED:
            self.watch.close()
        self._since = time.perf_counter()
        ended = self._tokens > _SETTLED
        return torch.full(input_ids.shape[:1], ended, device=input_ids.device)  # type: ignore[return-value]


def _started_once(engine: TimedEngine, work: Work, seed: int) -> Generation:
    """Let steps be recorded or compiled in a call that ends after a few, then generate once."""
    with ExitStack() as watch:
        first = FirstSteps(engine.device, watch)
        criteria = StoppingCriteriaList([first])
        # generate() makes a static cache itself, and would not return it as fast in the call that counts
        started = engine.kv_bytes(
            _generate(engine, work, seed, stopping_criteria=criteria, return_dict_in_generate=True)[CACHE]
        )
    found = generate_once(engine, work, seed)
    busy = first.found[0] if first.found else None
    return replace(found, kv_bytes=max(started, found.kv_bytes), first_seconds=first.seconds, busy=busy)


def _generate(engine: TimedEngine, work: Work, seed: int, cache: Cache | None = None, **options: Any) -> Any:
    if cache is None:
        cache = engine.new_cache(work.prompt + work.generated)
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(engine.model.config.vocab_size, (work.batch, work.prompt), generator=source)
    tokens = tokens.to(engine.device)
    with plain_search(engine.model):
        return cast(Any, engine.model).generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            **engine.generate_arguments(cache),
            use_cache=True,
            max_new_tokens=work.generated,
            min_new_tokens=work.generated,
            # would end the run before its time
            stop_strings=None,
            do_sample=False,
            **options,
        )
