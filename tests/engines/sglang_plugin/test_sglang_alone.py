"""SGLang on a CPU without a budget, beside transformers: what differs under a budget is then the plugin's doing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from budget_cases import furthest
from sglang_engines import SchedulerError, needs_sglang, sampling, started
from transformers import AutoModelForCausalLM

from decoding import random_tokens

pytestmark = needs_sglang

SHARED = random_tokens(40, 0)
PROMPTS = [SHARED + random_tokens(5 + 3 * number, number + 1) for number in range(12)]


def leak(scheduler: Any) -> None:
    scheduler.token_to_kv_pool_allocator.alloc(1)


def test_logprobs_equal_transformers_and_a_leak_is_noticed(random_model: Callable[[str], Path]) -> None:
    folder = random_model("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with started(folder, {}, skip_tokenizer_init=True) as scheduler:
        drawn = scheduler.generate(PROMPTS, [sampling(60 + 9 * number) for number in range(12)])
        with scheduler.copied():
            scheduler.call(leak)
            with pytest.raises(SchedulerError, match="Mem Leak Detected"):
                scheduler.generate(PROMPTS[:1], sampling(1))
        best = scheduler.generate(PROMPTS[:3], sampling(50, temperature=0.0))
    assert [len(result.tokens) for result in drawn] == [60 + 9 * number for number in range(12)]
    assert all(result.finish["type"] == "length" for result in drawn)
    assert sum(result.cached >= len(SHARED) for result in drawn) >= 4, "prompts must be shared"
    results, prompts = [*drawn, *best], [*PROMPTS, *PROMPTS[:3]]
    with torch.no_grad():
        logits = [
            model(torch.tensor([[*prompt, *result.tokens]])).logits[0, len(prompt) - 1 : -1]
            for prompt, result in zip(prompts, results, strict=True)
        ]
    assert furthest(results, [rows.log_softmax(-1) for rows in logits]) < 2e-5
    assert [result.tokens for result in best] == [rows.argmax(-1).tolist() for rows in logits[12:]]
