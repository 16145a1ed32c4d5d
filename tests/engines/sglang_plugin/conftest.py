"""One scheduler under a budget for several files: each test has a copy of its process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from budget_cases import CONFIG, POOL
from sglang_engines import Scheduler, budget, started


@pytest.fixture(scope="session")
def llama(random_model: Callable[[str], Path]) -> Path:
    return random_model("llama")


@pytest.fixture(scope="session")
def process(llama: Path) -> Iterator[Scheduler]:
    """A random Llama: eight requests at a time, in a pool that holds about three, prompts in pieces of at most 64."""
    settings, chosen = budget(CONFIG, llama / "predictor"), {"max_total_tokens": POOL, "chunked_prefill_size": 64}
    with started(llama, settings, skip_tokenizer_init=True, **chosen) as scheduler:
        yield scheduler


@pytest.fixture
def scheduler(process: Scheduler) -> Iterator[Scheduler]:
    """As it was when it had started."""
    with process.copied():
        yield process
