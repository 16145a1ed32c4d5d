"""SGLang's engine as a user starts it: a process for requests, one for texts, and one for each rank."""

from pathlib import Path

import pytest
from budget_cases import CONFIG, PROMPTS, TOLERANCE, compactions, expect, furthest
from sglang_engines import Result, budget, engine_answers, needs_sglang, sampling

pytestmark = [needs_sglang, pytest.mark.timeout(900)]


def test_tensor_parallelism_and_several_samples(llama: Path) -> None:
    """Two ranks with a KV head each choose alike, although their hidden states may differ in the last bits."""
    forced = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "97"}
    settings = {**budget(CONFIG, llama / "predictor"), **forced, "SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    answers = engine_answers(
        llama, settings, PROMPTS[:3], sampling(200, n=2), skip_tokenizer_init=True, tp_size=2, max_total_tokens=900
    )
    results = [
        Result(
            tokens=answer["output_ids"],
            logprobs=[logprob for logprob, *_ in answer["meta_info"]["output_token_logprobs"]],
            top=[
                {token: logprob for logprob, token, _ in likeliest}
                for likeliest in answer["meta_info"]["output_top_logprobs"]
            ],
        )
        for answer in answers
    ]
    assert [len(result.tokens) for result in results] == [200] * 6
    assert len({tuple(result.tokens) for result in results}) == 6
    prompts = [prompt for prompt in PROMPTS[:3] for _ in range(2)]
    assert furthest(results, expect(llama, prompts, results)) < TOLERANCE
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) >= 1
    told = [answer["meta_info"]["dynts"][0]["compactions"] for answer in answers]
    assert sum(told) == compactions(prompts, results) >= 12
