"""Prompts, a budget, and what the transformers path makes of them; functions that look into a scheduler's process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sglang_engines import Result

import dynts
from decoding import random_tokens
from dynts.cache.lengths import cache_lengths
from dynts.cache.method import Method
from dynts.chat.markers import ThinkMarkers
from transformers_path import MARKERS, forced_logprobs

TOLERANCE = 1e-4
CONFIG = dynts.CompressionConfig(budget=140, local_window=24, retention_ratio=0.4)
SYSTEM = random_tokens(40, 0)
PROMPTS = [SYSTEM + random_tokens(5 + 3 * number, number + 1) for number in range(16)]
LENGTHS = [110 + 31 * (number % 7) for number in range(16)]
POOL = 450
"""Tokens: three budgets and a little; the longest sequence takes nearly as much alone."""


def counted(scheduler: Any) -> dict[str, int]:
    """In the scheduler's process: the plugin's counters."""
    return {name: getattr(scheduler.counters, name) for name in ("compactions", "peak_requests", "preemptions")}


def free_slots(scheduler: Any) -> int:
    """Likewise: slots of the pool that no request holds and no prompt in the radix cache."""
    return int(scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size())


def dispatch(scheduler: Any, name: str, **fields: Any) -> None:
    """Likewise: hands over one of SGLang's requests that control the scheduler."""
    from sglang.srt.managers import io_struct

    scheduler.process_input_requests([getattr(io_struct, name)(**fields)])


def compactions(prompts: Sequence[Sequence[int]], results: Sequence[Result]) -> int:
    """As many as with transformers."""
    return sum(
        len(cache_lengths(len(prompt), len(result.tokens), CONFIG).compactions)
        for prompt, result in zip(prompts, results, strict=True)
    )


def expect(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    results: Sequence[Result],
    predictor: str = "predictor",
    method: str | Method = "dynts",
    dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """What the transformers path says of the tokens that SGLang generated."""
    known = dynts.ImportancePredictor.from_pretrained(folder / predictor)
    markers = ThinkMarkers((MARKERS[0],), (MARKERS[1],))
    outputs = [result.tokens for result in results]
    return forced_logprobs(folder, prompts, outputs, CONFIG, known, markers, method, dtype)[0]


def furthest(results: Sequence[Result], expected: Sequence[torch.Tensor]) -> float:
    """Largest difference between the log-probabilities that SGLang reports and the expected ones, [tokens,
    vocabulary]."""
    assert all(len(result.tokens) == len(result.top) == len(result.logprobs) for result in results)
    return max(
        abs(reported - row[step, token].item())
        for result, row in zip(results, expected, strict=True)
        for step, (chosen, logprob, likeliest) in enumerate(
            zip(result.tokens, result.logprobs, result.top, strict=True)
        )
        for token, reported in [(chosen, logprob), *likeliest.items()]
    )
