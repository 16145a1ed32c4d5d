"""A real model under the plugin, beside the transformers path: SmolLM2-135M, whose weights are not part of the
repository.

    SMOLLM2=FOLDER pytest tests/engines/sglang_plugin/test_sglang_smollm2.py -m slow -s

with a folder that `from_pretrained` reads. The predictor's weights are random: equality does not ask for good scores.
"""

from pathlib import Path

import pytest
import sglang_engines
from budget_cases import counted, free_slots, furthest
from sglang_engines import budget, needs_sglang, sampling, started
from transformers import AutoTokenizer

import dynts
from decoding import random_predictor
from dynts.cache.lengths import cache_lengths
from dynts.chat.markers import ThinkMarkers
from smollm2 import MODEL, needs_smollm2, questions
from transformers_path import forced_logprobs

CONFIG = dynts.CompressionConfig(budget=480, local_window=64, retention_ratio=0.4)
POOL = 2048
"""Tokens: about four requests under the budget."""

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(1800), needs_smollm2]


def test_logprobs_equal_the_transformers_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_engines, "TIMEOUT", 1500)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = questions(tokenizer)
    think = tuple(tokenizer(mark, add_special_tokens=False)["input_ids"][0] for mark in ("<", ">"))
    predictor = random_predictor(576, think=think)
    predictor.save_pretrained(tmp_path)
    lengths = [240 + 23 * (number % 5) for number in range(16)]
    with started(Path(MODEL), budget(CONFIG, tmp_path), max_total_tokens=POOL) as scheduler:
        results = scheduler.generate(prompts, [sampling(length) for length in lengths])
        counters = scheduler.call(counted)
        assert scheduler.call(free_slots) == POOL
    due = [cache_lengths(*ends, CONFIG).compactions for ends in zip(map(len, prompts), lengths, strict=True)]
    assert counters["compactions"] == sum(map(len, due)) >= len(prompts)
    assert 1 < counters["peak_requests"] < len(prompts), "some must wait"
    assert sum(result.cached >= 200 for result in results) >= 8, "the system prompt must be shared"
    outputs, markers = [result.tokens for result in results], ThinkMarkers((think[0],), (think[1],))
    difference = furthest(results, forced_logprobs(MODEL, prompts, outputs, CONFIG, predictor, markers)[0])
    print(f"largest difference of log-probabilities: {difference:.2g}, {counters['compactions']} compactions")
    assert difference < 1e-4
