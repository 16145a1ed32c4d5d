"""What of vLLM works under the budget, on each of its model runners: docs/guides/vllm.md shows this table."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_engines import budget, free_blocks, needs_vllm, outputs_of, prompts_of, sampling, scheduler, started

import dynts
from dynts.chat.markers import think_markers
from dynts.chat.prompts import chat_prompt
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.task import HELD_OUT, make_problem
from transformers_path import forced_logprobs

TOLERANCE = 1e-4
CONFIG = dynts.CompressionConfig(budget=128, local_window=30, retention_ratio=0.4)
POOL = 40
MODEL, TOKENIZER = load_tiny_model()
PROMPTS: list[list[int]] = [
    TOKENIZER(chat_prompt(TOKENIZER, make_problem(number).question), add_special_tokens=False)["input_ids"]
    for number in HELD_OUT[:3]
]
DIGITS = [TOKENIZER.convert_tokens_to_ids(digit) for digit in "0123456789"]


RIGHT, REFUSED, NOT_RUN = "right", "refused", "not run"
_ENGINE = "test_vllm_engine.py::test_"
_SHARED = f"{_ENGINE}logprobs_equal_the_transformers_path_with_queueing_and_shared_prompts"
_SAMPLES = f"{_ENGINE}several_samples_seeds_stops_and_aborts"
_HERE = "test_vllm_features.py::test_"
_REFUSALS = "test_vllm_refusals.py::test_"
_CONFIGURATIONS = f"{_REFUSALS}configurations"
FEATURES = [
    ("queueing, chunked prefill, shared prompts (prefix caching)", RIGHT, RIGHT, _SHARED),
    (
        "preemption, `reset_prefix_cache`",
        RIGHT,
        RIGHT,
        f"{_ENGINE}evicted_requests_that_are_preempted_are_replayed_exactly",
    ),
    ("asynchronous scheduling", RIGHT, RIGHT, "test_vllm_variants.py::test_asynchronous_scheduling"),
    ("compiled models", RIGHT, RIGHT, "test_vllm_variants.py::test_architectures"),
    (
        "a pool smaller than the longest sequence",
        RIGHT,
        RIGHT,
        "test_vllm_admission.py::test_a_pool_for_one_budget_decodes_sequences_of_many_times_its_size",
    ),
    ("`n` > 1, seeds, stop tokens, aborts", RIGHT, RIGHT, _SAMPLES),
    ("structured output", RIGHT, RIGHT, f"{_HERE}structured_output"),
    ("presence and frequency penalties", RIGHT, RIGHT, f"{_HERE}penalties_count_evicted_tokens_too"),
    ("log-probabilities of prompts", RIGHT, RIGHT, f"{_HERE}logprobs_of_prompts"),
    ("pausing and resuming", RIGHT, RIGHT, f"{_HERE}pausing_drops_nothing_that_is_not_computed_again"),
    ("prompts that are streamed in, embeddings", REFUSED, REFUSED, f"{_REFUSALS}requests"),
    ("speculative decoding", REFUSED, REFUSED, _CONFIGURATIONS),
    ("LoRA adapters", REFUSED, REFUSED, _CONFIGURATIONS),
    ("KV and encoder connectors, offloading", REFUSED, REFUSED, _CONFIGURATIONS),
    ("sleep mode, weights that change", REFUSED, REFUSED, _CONFIGURATIONS),
    ("pipeline and context parallelism, dual batch overlap", REFUSED, REFUSED, _CONFIGURATIONS),
    (
        "quantised KV caches, MLA, experts taken, diffusion, encoders, several modalities",
        REFUSED,
        REFUSED,
        _CONFIGURATIONS,
    ),
    ("layers that are hybrid or see a sliding window", REFUSED, REFUSED, f"{_REFUSALS}kv_caches_of_other_layers"),
    ("tensor parallelism", RIGHT, RIGHT, "test_vllm_variants.py::test_tensor_parallelism"),
    ("data parallelism, CUDA graphs", NOT_RUN, NOT_RUN, ""),
]
"""What, on V1, on V2, and the test that shows it."""


def table() -> str:
    """As docs/guides/vllm.md has it."""
    rows = [("", "V1", "V2", "shown by"), ("---",) * 4]
    rows += [(what, v1, v2, f"`{shown.partition('::')[2]}`" if shown else "") for what, v1, v2, shown in FEATURES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_has_the_table_and_the_tests_are_there() -> None:
    here = Path(__file__).parent
    assert table() in (here.parents[2] / "docs/guides/vllm.md").read_text(), (
        f"put this into docs/guides/vllm.md:\n{table()}"
    )
    for *_, shown in FEATURES:
        if shown:
            file, name = shown.split("::")
            assert name in {getattr(node, "name", "") for node in ast.parse((here / file).read_text()).body}


@pytest.fixture(scope="module", params=["v1", "v2"])
def llm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The embedded model: in a pool for nine budgets."""
    with started(WEIGHTS, budget(CONFIG, WEIGHTS / "answer"), request.param, num_gpu_blocks_override=POOL) as llm:
        yield llm


def expect(results: Sequence[Any]) -> list[torch.Tensor]:
    """Log-probabilities of the transformers path on what vLLM wrote."""
    markers = think_markers(TOKENIZER)
    rows, compactions = forced_logprobs(
        WEIGHTS, PROMPTS[: len(results)], outputs_of(results), CONFIG, load_tiny_predictor(), markers
    )
    assert compactions > 2, "or the test tests nothing"
    return rows


@needs_vllm
def test_structured_output(llm: Any) -> None:
    """A grammar bars tokens and leaves the others' log-probabilities apart as they were."""
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex="[0-9]{150}")
    drawn = sampling(200, ignore_eos=False, structured_outputs=grammar)
    results = llm.generate(prompts_of(PROMPTS), drawn, use_tqdm=False)
    assert scheduler(llm).counters.compactions > len(PROMPTS)
    for result, row in zip(results, expect(results), strict=True):
        *numbers, _ = result.outputs[0].token_ids
        assert len(numbers) == 150
        assert set(numbers) <= set(DIGITS)
        for step, reports in enumerate(result.outputs[0].logprobs[:150]):
            among = [token for token in reports if token in DIGITS]
            assert len(among) >= 5
            apart = torch.tensor([reports[token].logprob for token in among]) - row[step, among]
            assert (apart - apart[0]).abs().max() < TOLERANCE
    chosen = StructuredOutputsParams(choice=["so", "wait"])
    texts = llm.generate(prompts_of(PROMPTS), sampling(9, ignore_eos=False, structured_outputs=chosen), use_tqdm=False)
    assert {TOKENIZER.decode(tokens[:1]) for tokens in outputs_of(texts)} <= {"so", "wait"}


@needs_vllm
def test_penalties_count_evicted_tokens_too(llm: Any) -> None:
    greedy = sampling(120, temperature=0.0, frequency_penalty=0.2, presence_penalty=0.3)
    results = llm.generate(prompts_of(PROMPTS), greedy, use_tqdm=False)
    for tokens, row in zip(outputs_of(results), expect(results), strict=True):
        written = torch.zeros(row.shape[1])
        for step, token in enumerate(tokens):
            penalised = row[step] - 0.2 * written - 0.3 * (written > 0)
            assert penalised.max() - penalised[token] < TOLERANCE
            written[token] += 1


@needs_vllm
def test_logprobs_of_prompts(llm: Any) -> None:
    results = llm.generate(prompts_of(PROMPTS), sampling(5, prompt_logprobs=3), use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        with torch.no_grad():
            row = MODEL(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert result.prompt_logprobs[0] is None
        for at, reports in enumerate(result.prompt_logprobs[1:]):
            # vLLM without a budget lies as far from transformers, where a prompt's token is unlikely
            for token, said in reports.items():
                assert said.logprob == pytest.approx(row[at, token].item(), abs=2 * TOLERANCE)


@needs_vllm
def test_pausing_drops_nothing_that_is_not_computed_again(llm: Any) -> None:
    """Pausing clears the caches of running requests: they are computed anew when the engine goes on."""
    engine, core, watched = llm.llm_engine, llm.llm_engine.engine_core, scheduler(llm)
    usual = outputs_of(llm.generate(prompts_of(PROMPTS), sampling(150, temperature=0.0), use_tqdm=False))
    for number, prompt in enumerate(prompts_of(PROMPTS)):
        engine.add_request(str(number), prompt, sampling(150, temperature=0.0))
    done: dict[str, Any] = {}
    steps = 0
    while engine.has_unfinished_requests():
        done |= {result.request_id: result for result in engine.step() if result.finished}
        steps += 1
        if steps in (90, 130):
            before = watched.counters.preemptions
            core.engine_core.pause_scheduler("keep")
            assert watched.counters.preemptions == before + len(PROMPTS)
            assert free_blocks(llm) == POOL - 1
            engine.step()
            core.engine_core.resume_scheduler()
    assert outputs_of([done[str(number)] for number in range(len(PROMPTS))]) == usual
