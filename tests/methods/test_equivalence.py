"""Every decode step equals one full forward pass with explicit masks and positions (`reference.py`)."""

import pytest
import torch

import dynts
from against_reference import CONFIG, check_row, reference_of
from decoding import TOLERANCE, converse, random_tokens
from method_table import CASES
from reference import Turn, reference_generate
from tiny import STATEFUL, TINY_NAMES, tiny_model


@pytest.mark.quick
@pytest.mark.parametrize("architecture", [*TINY_NAMES, "qwen3_next", "granite"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_eviction_equals_native_generate(architecture: str, attention: str) -> None:
    model = tiny_model(architecture, attn_implementation=attention)
    rows = [random_tokens(6, 1), random_tokens(10, 2)]
    inputs = {
        "input_ids": torch.tensor([[0] * 4 + rows[0], rows[1]]),
        "attention_mask": torch.tensor([[0] * 4 + [1] * 6, [1] * 10]),
    }
    options = {"max_new_tokens": 50, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    native = model.generate(**inputs, **options)
    for method in ("full", "h2o"):
        with dynts.compress(model, method, dynts.CompressionConfig(budget=200, local_window=9)) as session:
            ours = model.generate(**inputs, **options)
        assert session.stats[0].compactions == []
        assert torch.equal(ours.sequences, native.sequences)
        for got, expected in zip(ours.logits, native.logits, strict=True):
            torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_single_row(architecture: str, name: str) -> None:
    model = tiny_model(architecture)
    prompt = random_tokens(11, seed=5)
    talk = converse(model, [([prompt], 52)], CASES[name].method, CONFIG)
    run = reference_of(model, name, [Turn(prompt, 52)], [talk.tokens[0][0]])
    assert name == "full" or len(run.compactions) >= 3
    check_row(talk, 0, run)
    assert [tuple(event) for event in talk.session.stats[0].compactions] == run.compactions
    assert talk.session.stats[0].peak_tokens == (62 if name == "full" else CONFIG.budget)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "dynts, native", "window", "h2o", "snapkv, native", "rkv"])
@pytest.mark.parametrize("architecture", ["gemma2", "phi3", "mistral"])
def test_single_row_of_other_architectures(architecture: str, name: str) -> None:
    test_single_row(architecture, name)


# transformers 5.16 does not show the queries of Falcon-H1
BESIDE_A_STATE = [
    *(("qwen3_next", name) for name in ("dynts", "h2o, native", "snapkv", "rkv, native")),
    *(("qwen3_5", name) for name in ("dynts, native", "h2o")),
    *(("lfm2", name) for name in ("dynts, native", "rkv")),
    *(("granite", name) for name in ("dynts", "snapkv, native")),
    *(("falcon_h1", name) for name in ("dynts, native", "window")),
]


@pytest.mark.parametrize(("architecture", "name"), BESIDE_A_STATE)
def test_single_row_beside_a_state(architecture: str, name: str) -> None:
    test_single_row(architecture, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("architecture", "attention"), [("llama", "sdpa"), ("gpt_oss", "eager"), ("gemma3", "sdpa")])
def test_each_row_of_a_padded_batch(architecture: str, attention: str, name: str) -> None:
    model = tiny_model(architecture, attn_implementation=attention)
    rows = [random_tokens(4, 6), random_tokens(13, 7), random_tokens(9, 8)]
    talk = converse(model, [(rows, 48)], CASES[name].method, CONFIG)
    for row, prompt in enumerate(rows):
        check_row(talk, row, reference_of(model, name, [Turn(prompt, 48)], [talk.tokens[0][row]]))


@pytest.mark.parametrize("architecture", STATEFUL)
def test_each_row_of_a_padded_batch_beside_a_state(architecture: str) -> None:
    test_each_row_of_a_padded_batch(architecture, "sdpa", "dynts")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_multi_turn(architecture: str, name: str) -> None:
    model = tiny_model(architecture)
    prompts = [random_tokens(5, 9), random_tokens(4, 10), random_tokens(1, 11)]
    new_tokens = [24, 20, 30]
    turns = [([prompt], count) for prompt, count in zip(prompts, new_tokens, strict=True)]
    talk = converse(model, turns, CASES[name].method, CONFIG)
    reference_turns = [Turn(prompt, count) for prompt, count in zip(prompts, new_tokens, strict=True)]
    run = reference_of(model, name, reference_turns, [tokens[0] for tokens in talk.tokens])
    check_row(talk, 0, run)
    steps = [tuple(event) for stats in talk.session.stats for event in stats.compactions]
    assert steps == run.compactions


@pytest.mark.parametrize("name", ["dynts", "h2o", "snapkv, native", "rkv"])
def test_multi_turn_with_attention_sinks(name: str) -> None:
    test_multi_turn("gpt_oss", name)


@pytest.mark.parametrize("architecture", STATEFUL)
def test_multi_turn_beside_a_state(architecture: str) -> None:
    test_multi_turn(architecture, "dynts, native")


@pytest.mark.parametrize("name", CASES)
def test_multi_turn_of_a_padded_batch(name: str) -> None:
    model = tiny_model("qwen2")
    first, second = [random_tokens(3, 12), random_tokens(7, 13)], [random_tokens(5, 14), random_tokens(2, 15)]
    talk = converse(model, [(first, 28), (second, 28)], CASES[name].method, CONFIG)
    for row in range(2):
        turns = [Turn(first[row], 28), Turn(second[row], 28)]
        check_row(talk, row, reference_of(model, name, turns, [tokens[row] for tokens in talk.tokens]))


@pytest.mark.parametrize("name", ["dynts", "dynts-random", "dynts-all"])
def test_answer_tokens_are_protected_but_where_all_compete(name: str) -> None:
    model = tiny_model("llama")
    prompt = random_tokens(8, 16)
    # the greedy text decides when thinking "ends": take a token that it writes between two compactions
    plain = converse(model, [([prompt], 70)], CASES[name].method, CONFIG)
    end = plain.tokens[0][0][20]
    markers = dynts.ThinkMarkers(start=(1,), end=(end,))
    talk = converse(model, [([prompt], 70)], CASES[name].method, CONFIG, markers=markers)
    run = reference_generate(
        model,
        [Turn(prompt, 70)],
        budget=CONFIG.budget,
        local_window=CONFIG.local_window,
        retention_ratio=CONFIG.retention_ratio,
        forced=[talk.tokens[0][0]],
        think_start=(1,),
        think_end=(end,),
        **CASES[name].options,
    )
    check_row(talk, 0, run)
    pairs = zip(talk.session.kept_positions, plain.session.kept_positions, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs) == (name == "dynts-all")
    assert talk.session.stats[0].peak_tokens == CONFIG.budget
