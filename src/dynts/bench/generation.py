"""Generation mode: time whole `generate` calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from dynts.bench.engines import TimedEngine
from dynts.bench.machine import seconds
from dynts.bench.profile import Work, in_rounds
from dynts.cache.interface import CACHE
from dynts.decode.checkpoint import plain_search


@dataclass(frozen=True, slots=True)
class Generation:
    """One engine in one round.

    Attributes:
        engine: its name.
        budget: most cached tokens of a row; None where nothing is evicted.
        work: what was generated.
        total_seconds: of the `generate` call, prefill included.
        kv_bytes: allocated for keys and values at the end.
    """

    engine: str
    budget: int | None
    work: Work
    total_seconds: float
    kv_bytes: int

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
    return in_rounds(engines, rounds, lambda engine, number: _generate_once(engine, work, seed=number), done)


def _generate_once(engine: TimedEngine, work: Work, seed: int) -> Generation:
    source = torch.Generator().manual_seed(seed)
    vocabulary = engine.model.config.vocab_size
    tokens = torch.randint(vocabulary, (work.batch, work.prompt), generator=source).to(engine.device)
    cache = engine.new_cache()
    model = cast(Any, engine.model)
    with plain_search(engine.model):
        taken = seconds(
            lambda: model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                **{CACHE: cache},
                use_cache=True,
                max_new_tokens=work.generated,
                min_new_tokens=work.generated,
                # would end the run before its time
                stop_strings=None,
                do_sample=False,
            ),
            engine.device,
        )
    return Generation(engine.name, engine.budget, work, taken, engine.kv_bytes(cache))
