"""The embedded model, with its tokenizer, in SGLang under a budget: texts, and what bars tokens or ends them."""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from budget_cases import TOLERANCE, counted, dispatch, free_slots, furthest
from sglang_engines import Result, Scheduler, budget, needs_sglang, sampling, started

import dynts
from dynts.cache.lengths import cache_lengths
from dynts.chat.markers import think_markers
from dynts.chat.prompts import chat_prompt
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from transformers_path import forced_logprobs

MODEL, TOKENIZER = load_tiny_model()
CONFIG = schedule(budget_for(0.4))
PROBLEMS = [make_problem(number) for number in HELD_OUT[:10]]
PROMPTS: list[list[int]] = [
    TOKENIZER(chat_prompt(TOKENIZER, problem.question), add_special_tokens=False)["input_ids"] for problem in PROBLEMS
]
DIGITS = [TOKENIZER.convert_tokens_to_ids(digit) for digit in "0123456789"]
POOL = 900
GREEDY = sampling(600, temperature=0.0, ignore_eos=False)


RIGHT, REFUSED, NOT_RUN = "right", "refused", "not run"
_ENGINE, _VARIANTS, _HERE = (
    "test_sglang_engine.py::test_",
    "test_sglang_variants.py::test_",
    "test_sglang_features.py::test_",
)
_RETRACTED = f"{_ENGINE}retracted_requests_are_replayed_exactly"
_OTHERWISE = f"{_VARIANTS}steps_that_do_not_overlap_prompts_in_pieces_priorities_and_penalties"
_SETTINGS = "test_sglang_refusals.py::test_server_settings"
_MODELS, _REQUESTS = "test_sglang_refusals.py::test_models", "test_sglang_refusals.py::test_requests"
FEATURES = [
    (
        "overlap scheduler, queueing, chunked prefill, shared prompts (radix cache)",
        RIGHT,
        f"{_ENGINE}logprobs_equal_the_transformers_path_with_queueing_and_shared_prompts",
    ),
    ("next turns of a conversation", RIGHT, f"{_ENGINE}second_turns_find_prompts_and_what_was_not_evicted"),
    ("sequences longer than the pool", RIGHT, f"{_ENGINE}sequences_longer_than_the_pool"),
    ("retraction, pausing", RIGHT, _RETRACTED),
    ("aborts of retracted requests", RIGHT, f"{_ENGINE}retracted_requests_are_aborted"),
    ("streams, stop tokens, aborts", RIGHT, f"{_ENGINE}streams_stops_and_aborts"),
    ("seeds", RIGHT, f"{_ENGINE}seeds"),
    ("log-probabilities of prompts", RIGHT, f"{_ENGINE}logprobs_of_prompts"),
    ("texts", RIGHT, f"{_HERE}the_embedded_model_answers_as_with_transformers"),
    ("stop strings", RIGHT, f"{_HERE}stop_strings"),
    ("structured output", RIGHT, f"{_HERE}structured_output_and_its_retraction"),
    ("`--disable-overlap-schedule`, priorities, penalties", RIGHT, _OTHERWISE),
    ("`--disable-radix-cache`", RIGHT, f"{_VARIANTS}without_a_radix_cache_and_retracted_by_sglang"),
    ("bfloat16", RIGHT, f"{_VARIANTS}bfloat16"),
    (
        "a set of tokens for each layer and KV head",
        RIGHT,
        "test_sglang_native.py::test_logprobs_equal_the_transformers_path",
    ),
    (
        "tensor parallelism, `n` > 1",
        RIGHT,
        "test_sglang_processes.py::test_tensor_parallelism_and_several_samples",
    ),
    ("pages of several tokens, other attention back ends, FP4 KV caches", REFUSED, _SETTINGS),
    ("speculative decoding", REFUSED, _SETTINGS),
    ("prompts and decode steps in one batch (`--enable-mixed-chunk`)", REFUSED, _SETTINGS),
    ("pipeline, context and elastic expert parallelism, data-parallel attention, several nodes", REFUSED, _SETTINGS),
    ("disaggregation, hierarchical and other prefix caches", REFUSED, _SETTINGS),
    ("LoRA adapters, hidden states in answers, experts taken, diffusion", REFUSED, _SETTINGS),
    ("several tokenizer processes, Ray", REFUSED, _SETTINGS),
    ("the server in Rust", REFUSED, "test_sglang_refusals.py::test_the_server_in_rust"),
    ("MLA, sliding windows, hybrid, multimodal, embedding and encoder-decoder models", REFUSED, _MODELS),
    ("embeddings as prompts, sessions, beam search", REFUSED, _REQUESTS),
    (
        "a predictor of another model, schedulers without the budget",
        REFUSED,
        "test_sglang_refusals.py::test_what_a_scheduler_refuses_is_raised_where_it_was_started",
    ),
    ("GPUs, CUDA graphs, FP8 KV caches (SGLang has none on CPUs)", NOT_RUN, ""),
]
"""What, whether it works, and the test that shows it."""


def table() -> str:
    """As docs/guides/sglang.md has it."""
    rows = [("", "", "shown by"), ("---",) * 3]
    rows += [(what, how, f"`{shown.partition('::')[2]}`" if shown else "") for what, how, shown in FEATURES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_page_has_the_table_and_the_tests_are_there() -> None:
    here = Path(__file__).parent
    assert table() in (here.parents[2] / "docs/guides/sglang.md").read_text(), (
        f"put this into docs/guides/sglang.md:\n{table()}"
    )
    for *_, shown in FEATURES:
        if shown:
            file, name = shown.split("::")
            assert name in {getattr(node, "name", "") for node in ast.parse((here / file).read_text()).body}


@pytest.fixture(scope="module")
def process() -> Iterator[Scheduler]:
    """In a pool for a few budgets."""
    with started(WEIGHTS, budget(CONFIG, WEIGHTS / "answer"), max_total_tokens=POOL) as scheduler:
        yield scheduler


def expect(results: Sequence[Result]) -> list[torch.Tensor]:
    """Log-probabilities of the transformers path on what SGLang wrote."""
    prompts, outputs = PROMPTS[: len(results)], [result.tokens for result in results]
    return forced_logprobs(WEIGHTS, prompts, outputs, CONFIG, load_tiny_predictor(), think_markers(TOKENIZER))[0]


@needs_sglang
def test_the_embedded_model_answers_as_with_transformers(scheduler: Scheduler) -> None:
    with dynts.compress(MODEL, "dynts", CONFIG, load_tiny_predictor(), tokenizer=TOKENIZER):
        texts = [solution.text for solution in solve(MODEL, TOKENIZER, PROBLEMS, max_new_tokens=600)]
    results = scheduler.generate(PROMPTS, GREEDY)
    lengths = [
        cache_lengths(len(prompt), len(result.tokens), CONFIG) for prompt, result in zip(PROMPTS, results, strict=True)
    ]
    assert [str(TOKENIZER.decode(result.tokens, skip_special_tokens=True)) for result in results] == texts
    assert scheduler.call(counted)["compactions"] == sum(len(each.compactions) for each in lengths) > 10
    assert furthest(results, expect(results)) < TOLERANCE
    assert scheduler.call(free_slots) == POOL


@needs_sglang
def test_stop_strings(scheduler: Scheduler) -> None:
    results = scheduler.generate(PROMPTS[:3], GREEDY)
    texts = [str(TOKENIZER.decode(result.tokens)) for result in results]
    stops = [" ".join(text.split()[-20:-14]) for text in texts]
    stopped = scheduler.generate(PROMPTS[:3], [{**GREEDY, "stop": [stop]} for stop in stops], stream=True)
    for whole, text, stop, result in zip(results, texts, stops, stopped, strict=True):
        assert result.finish == {"type": "stop", "matched": stop}
        assert result.tokens == whole.tokens[: len(result.tokens)]
        assert str(TOKENIZER.decode(result.tokens)) == text[: text.index(stop) + len(stop)]


@needs_sglang
def test_structured_output_and_its_retraction(process: Scheduler) -> None:
    """A grammar bars tokens and leaves the others' log-probabilities apart as they were, after a retraction too."""
    scheduler = process  # the threads that compile grammars would not be in a copy
    numbers = scheduler.add(PROMPTS[:3], sampling(200, ignore_eos=False, regex="[0-9]{150}"))
    scheduler.run(140)
    scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
    scheduler.call(dispatch, "ContinueGenerationReqInput")
    scheduler.run()
    results = scheduler.results[numbers]
    for result, row in zip(results, expect(results), strict=True):
        *written, _ = result.tokens
        assert result.retractions == 1
        assert len(written) == 150
        assert set(written) <= set(DIGITS)
        for step, reports in enumerate(result.top[:150]):
            among = [token for token in reports if token in DIGITS]
            assert len(among) >= 5
            apart = torch.tensor([reports[token] for token in among]) - row[step, among]
            assert (apart - apart[0]).abs().max() < TOLERANCE
    choices = scheduler.generate(PROMPTS[:3], sampling(9, ignore_eos=False, regex="(so|wait)"))
    assert {str(TOKENIZER.decode(result.tokens[:1])) for result in choices} <= {"so", "wait"}
