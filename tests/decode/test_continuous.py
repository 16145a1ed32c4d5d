"""Rows that join and leave: every sequence is what it is alone, by an independent reference."""

import pytest

from decoding import random_tokens
from joined_rows import Joining, check_joined, run_joining
from method_table import EVERY
from tiny import tiny_model

STREAM = [
    Joining(random_tokens(5, 1), 0, 40),
    Joining(random_tokens(9, 2), 0, 3),
    Joining(random_tokens(7, 3), 1, 60),
    Joining(random_tokens(12, 4), 4, 1),
    Joining(random_tokens(3, 5), 9, 35, leaves=20),
    Joining(random_tokens(14, 6), 9, 45),
]
"""More than there are rows; some evict several times, one ends at its first token, for one nobody waits."""


def fresh(stream: list[Joining]) -> list[Joining]:
    return [Joining(each.prompt, each.arrives, each.length, each.leaves) for each in stream]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_every_sequence_is_what_it_is_alone(architecture: str, name: str) -> None:
    model, stream = tiny_model(architecture), fresh(STREAM)
    batch = run_joining(model, name, stream, rows=3, prefill_tokens=8)
    for each in stream:
        check_joined(model, name, each)
    assert max(batch.seen) == 3
    assert batch.cache is None, "nobody holds slots when nobody generates"
