"""Measure engines side by side, again and again."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from dynts.bench.engines import Engine

Measured = TypeVar("Measured")


def in_rounds(
    engines: Sequence[Engine], rounds: int, measure: Callable[[Engine, int], Measured], done: Callable[[], None]
) -> list[list[Measured]]:
    """Every round measures each engine once, in alternating order, so that drift hits all alike.

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
