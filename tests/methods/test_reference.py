"""The reference itself, against plain models and against results worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynts.cache.interface import CACHE
from reference import (
    ReferenceRun,
    Turn,
    answer_flags,
    max_pool,
    reference_generate,
    rkv_attention,
    rkv_redundancy,
    rkv_similarity,
    select,
    snapkv_scores,
)
from tiny import TINY_NAMES, VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB_SIZE, (count,), generator=generator).tolist()


def zeros(hidden: Tensor) -> Tensor:
    return hidden.new_zeros(len(hidden))


def replay(length: int, prompt: int, run: ReferenceRun, kept: list[Tensor]) -> Tensor:
    """Visibility [length, length] of a one-turn run, from its compactions alone."""
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    for (step, _, _), positions in zip(run.compactions, kept, strict=True):
        fed = prompt + step
        gone = torch.ones(fed, dtype=torch.bool)
        gone[positions] = False
        visible[fed:, :fed] &= ~gone
    return visible


@torch.no_grad()
def masked_model_logits(model: PreTrainedModel, tokens: list[int], visible: Tensor) -> Tensor:
    """One forward of the untouched model under an additive mask; visible [T, T] or [heads, T, T]."""
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    mask = mask.expand(1, -1, -1, -1) if mask.ndim == 3 else mask[None, None]
    positions = torch.arange(len(tokens))[None]
    ids = torch.tensor([tokens])
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]


# ---------------------------------------------------------------------------------------------------------------------
# Without evictions


@pytest.mark.parametrize("name", TINY_NAMES)
def test_full_equals_the_plain_model(name: str) -> None:
    model = tiny_model(name)
    prompt = random_tokens(11)
    run = reference_generate(model, [Turn(prompt, 30)], method="full", budget=0, local_window=0, retention_ratio=0.0)
    assert run.compactions == []
    assert model.config._attn_implementation in ("sdpa", "eager")
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=30,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert output.sequences[0, len(prompt) :].tolist() == run.tokens[0]
    torch.testing.assert_close(run.logits[0], torch.cat(output.logits), atol=1e-5, rtol=0)
    # Neither flat nor degenerate, so that a wrong mask would show.
    assert 1 < run.logits[0].abs().max() < 20
    assert len(set(run.tokens[0])) > 3


def test_full_over_two_turns_feeds_every_token_once() -> None:
    model = tiny_model("llama")
    first, second = random_tokens(9), random_tokens(6, seed=1)
    run = reference_generate(
        model, [Turn(first, 5), Turn(second, 4)], method="full", budget=0, local_window=0, retention_ratio=0.0
    )
    with torch.no_grad():
        tokens = [*first, *run.tokens[0], *second, *run.tokens[1]]
        plain = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(run.logits[0], plain[8:13], atol=1e-5, rtol=0)
    torch.testing.assert_close(run.logits[1], plain[19:23], atol=1e-5, rtol=0)


def test_forced_tokens_are_fed_instead_of_the_greedy_ones() -> None:
    model = tiny_model("llama")
    prompt, forced = random_tokens(5), random_tokens(6, seed=3)
    run = reference_generate(
        model, [Turn(prompt, 6)], method="full", budget=0, local_window=0, retention_ratio=0.0, forced=[forced]
    )
    assert run.tokens == [forced]
    with torch.no_grad():
        plain = model(torch.tensor([prompt + forced])).logits[0]
    torch.testing.assert_close(run.logits[0], plain[4:10], atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Schedule and kept positions, by hand


# A budget of 12 with a prompt of 4 and a local window of 3: k = floor(0.4 * (12 - 3 - 4)) = 2, so 12 -> 4 + 2 + 3 = 9,
# first at step 8 and then every 3 steps.
SMALL: dict[str, Any] = {"budget": 12, "local_window": 3, "retention_ratio": 0.4}
PROMPT = [5, 6, 7, 8]


def small_run(method: str, **options: Any) -> ReferenceRun:
    return reference_generate(tiny_model("llama"), [Turn(PROMPT, 13)], method=method, **{**SMALL, **options})


def as_lists(run: ReferenceRun) -> list[list[int]]:
    return [kept.tolist() for kept in run.kept_positions]


def test_window_keeps_the_last() -> None:
    run = small_run("window")
    assert run.compactions == [(8, 12, 9), (11, 12, 9)]
    assert as_lists(run) == [list(range(3, 12)), list(range(6, 15))]


@pytest.mark.parametrize(
    ("method", "options"),
    [("question-window", {}), ("window", {"protect_question": True}), ("dynts", {"predictor": zeros})],
)
def test_question_then_the_latest(method: str, options: dict[str, Any]) -> None:
    """With equal scores the later token stays, so a constant predictor is the question and a window."""
    run = small_run(method, **options)
    assert as_lists(run) == [[0, 1, 2, 3, *range(7, 12)], [0, 1, 2, 3, *range(10, 15)]]


def test_sinks_then_the_latest() -> None:
    assert as_lists(small_run("streaming-llm", n_sink=2))[0] == [0, 1, *range(5, 12)]
    # Native granularity of a method without scores per head: the same set in each.
    native = small_run("streaming-llm", n_sink=2, granularity="native")
    assert native.kept_positions[0].shape == (2, 2, 9)
    assert native.kept_positions[0][1, 1].tolist() == [0, 1, *range(5, 12)]


def test_separators_after_the_initial_tokens() -> None:
    forced = [[9, 10, 60, 9, 60, 60, 9, 9, 9, 10, 60, 9, 9]]
    # Positions of 60: 6, 8, 9, 14. Local window 9-11; of 6 places one goes to position 0, two to separators.
    run = small_run("sepllm", n_initial=1, separators={60}, forced=forced)
    assert as_lists(run)[0] == [0, 4, 5, 6, 7, 8, 9, 10, 11]
    run = small_run("sepllm", n_initial=1, separators={60}, forced=forced, budget=10, retention_ratio=0.0)
    # Now four places outside the local window 7-9: the initial token, separator 6, then the latest.
    assert as_lists(run)[0] == [0, 4, 5, 6, 7, 8, 9]


def test_random_scores_and_bottom() -> None:
    scores = torch.arange(40.0).neg()
    assert as_lists(small_run("dynts-random", random_scores=scores))[0] == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    top = small_run("dynts", predictor=lambda hidden: hidden[:, 0])
    bottom = small_run("dynts-bottom", predictor=lambda hidden: hidden[:, 0])
    flipped = small_run("dynts", predictor=lambda hidden: -hidden[:, 0])
    assert as_lists(bottom) == as_lists(flipped) != as_lists(top)


def test_answer_tokens_outrank_everything() -> None:
    forced = [[20, 21, 22, 62, 23, 24, 25, 26, 27, 28, 29, 30, 31]]
    scores = torch.arange(40.0).neg()
    # 62 at position 7 ends the thinking: 8 and later are answer.
    run = small_run("dynts-random", random_scores=scores, think_start=[61], think_end=[62], forced=forced)
    assert as_lists(run) == [[0, 1, 2, 3, 4, 8, 9, 10, 11], [0, 1, 2, 3, 10, 11, 12, 13, 14]]


def test_answer_flags() -> None:
    stream = [1, 61, 5, 62, 63, 6, 61, 7, 62, 63, 8]
    expected = [5, 6, 10]
    assert [i for i, flag in enumerate(answer_flags(stream, 2, [61], [62, 63])) if flag] == expected
    # Fed tokens never count, but a marker among them does.
    assert [i for i, flag in enumerate(answer_flags(stream, 6, [61], [62, 63])) if flag] == [6, 10]
    assert not any(answer_flags(stream, 0, [], []))


def test_second_turn_by_hand() -> None:
    turns = [Turn([5, 6, 7], 6), Turn([8, 9, 10], 5)]
    run = reference_generate(
        tiny_model("llama"), turns, method="question-window", budget=11, local_window=2, retention_ratio=0.5
    )
    # Turn 1 feeds positions 0-2, then 3-7 one by one: 8 cached. Turn 2 feeds 8-11 (the pending token is question too),
    # M = 7 and k = floor(0.5 * (11 - 2 - 7)) = 1. 8 + 4 > 11, so first down to 3 + 1 + 2 = 6, then 10 after the
    # prefill. Every later step reaches 11 and goes back to 7 + 1 + 2 = 10.
    assert run.compactions == [(0, 8, 6), (1, 11, 10), (2, 11, 10), (3, 11, 10), (4, 11, 10)]
    question = [0, 1, 2, 8, 9, 10, 11]
    assert as_lists(run) == [
        [0, 1, 2, 5, 6, 7],
        sorted([*question, 6, 7, 12]),
        sorted([*question, 7, 12, 13]),
        sorted([*question, 12, 13, 14]),
        sorted([*question, 13, 14, 15]),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Against transformers' own forward under explicit masks


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("llama", "streaming-llm", {}),
        ("qwen3", "snapkv", {"window": 4}),
        ("qwen2", "rkv", {"protect_question": True}),
        ("mistral", "h2o", {}),
        ("phi3", "dynts", {"predictor": lambda hidden: hidden.square().sum(-1)}),
    ],
)
def test_shared_set_equals_the_model_under_a_4d_mask(name: str, method: str, options: dict[str, Any]) -> None:
    model = tiny_model(name)
    prompt = random_tokens(10)
    run = reference_generate(
        model, [Turn(prompt, 60)], method=method, budget=32, local_window=6, retention_ratio=0.4, **options
    )
    assert len(run.compactions) >= 3
    tokens = prompt + run.tokens[0][:-1]
    visible = replay(len(tokens), len(prompt), run, run.kept_positions)
    logits = masked_model_logits(model, tokens, visible)
    torch.testing.assert_close(run.logits[0], logits[len(prompt) - 1 :], atol=1e-5, rtol=0)
    plain = masked_model_logits(model, tokens, torch.ones_like(visible).tril())
    assert (plain - logits).abs().max() > 0.01


@pytest.mark.parametrize("method", ["h2o", "snapkv", "rkv"])
def test_native_sets_differ_and_equal_a_mask_per_head(method: str) -> None:
    # With one layer, transformers' sdpa takes a mask per query head.
    model = tiny_model("llama", num_hidden_layers=1)
    prompt = random_tokens(10)
    run = reference_generate(
        model,
        [Turn(prompt, 60)],
        method=method,
        budget=32,
        local_window=6,
        retention_ratio=0.4,
        granularity="native",
    )
    kept = run.kept_positions
    assert kept[0].shape == (1, 2, run.compactions[0][2])
    assert any(not torch.equal(k[0, 0], k[0, 1]) for k in kept)
    tokens = prompt + run.tokens[0][:-1]
    heads = [replay(len(tokens), len(prompt), run, [k[0, head] for k in kept]) for head in range(2)]
    visible = torch.stack([heads[0], heads[0], heads[1], heads[1]])
    logits = masked_model_logits(model, tokens, visible)
    torch.testing.assert_close(run.logits[0], logits[len(prompt) - 1 :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_hybrid_models_evict_in_full_attention_layers_only(name: str) -> None:
    model = tiny_model(name)
    run = reference_generate(
        model,
        [Turn(random_tokens(10), 30)],
        method="snapkv",
        budget=24,
        local_window=4,
        retention_ratio=0.4,
        granularity="native",
    )
    assert run.kept_positions[0].shape == (2, 2, run.compactions[0][2])


@pytest.mark.parametrize(("budget", "local_window"), [(24, 4), (10, 0)])
def test_first_h2o_choice_from_the_models_own_weights(budget: int, local_window: int) -> None:
    """The small budget is reached after two steps, where a wrongly counted prefill row would weigh most."""
    model = tiny_model("qwen3", attn_implementation="eager")
    prompt = random_tokens(8)
    options: dict[str, Any] = {"budget": budget, "local_window": local_window, "retention_ratio": 0.5}
    run = reference_generate(model, [Turn(prompt, 20)], method="h2o", granularity="native", **options)
    step, before, after = run.compactions[0]
    with torch.no_grad():
        weights = model(torch.tensor([prompt + run.tokens[0][:step]]), output_attentions=True).attentions
    recent = list(range(before - local_window, before))
    for layer in range(2):
        for head in range(2):
            received = weights[layer][0, 2 * head : 2 * head + 2, len(prompt) :].mean(dim=0).sum(dim=0)
            best = received[: before - local_window].topk(after - local_window).indices.tolist()
            assert run.kept_positions[0][layer, head].tolist() == sorted([*best, *recent])


def best_later_first(scores: Tensor, places: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda j: (scores[j].item(), j), reverse=True)[:places]


def test_first_snapkv_choice_from_the_models_own_weights() -> None:
    model = tiny_model("qwen3", attn_implementation="eager")
    prompt, w = random_tokens(8), 5
    options: dict[str, Any] = {"budget": 24, "local_window": 6, "retention_ratio": 0.5, "granularity": "native"}
    run = reference_generate(model, [Turn(prompt, 20)], method="snapkv", window=w, **options)
    step, before, after = run.compactions[0]
    with torch.no_grad():
        weights = model(torch.tensor([prompt + run.tokens[0][:step]]), output_attentions=True).attentions
    for layer in range(2):
        for head in range(2):
            # The softmax over a part of the keys is the softmax over all of them, renormalised.
            rows = weights[layer][0, 2 * head : 2 * head + 2, -w:, : before - w]
            mean = (rows / rows.sum(dim=-1, keepdim=True)).mean(dim=(0, 1))
            scores = torch.nn.functional.max_pool1d(mean[None], 7, stride=1, padding=3)[0]
            best = best_later_first(scores[: before - 6], after - 6)
            expected = sorted([*best, *range(before - 6, before)])
            assert run.kept_positions[0][layer, head].tolist() == expected


def test_first_rkv_choice_from_the_models_own_keys() -> None:
    """Mix 0 is redundancy, here from the keys of a plain cache; mix 1 is attention, without GQA the same as SnapKV."""
    model = tiny_model("llama", num_key_value_heads=4)
    prompt = random_tokens(8)
    options: dict[str, Any] = {"budget": 24, "local_window": 8, "retention_ratio": 0.5, "granularity": "native"}
    run = reference_generate(model, [Turn(prompt, 20)], method="rkv", mix=0.0, **options)
    step, before, after = run.compactions[0]
    with torch.no_grad():
        cache = model(torch.tensor([prompt + run.tokens[0][:step]]), use_cache=True)[CACHE]
    for layer in range(2):
        for head in range(4):
            unit = torch.nn.functional.normalize(cache.layers[layer].keys[0, head], dim=-1)
            cosine = (unit @ unit.T).fill_diagonal_(0)
            columns = torch.arange(before).expand(before, before)
            last = columns.masked_fill(cosine <= 0.5, -1).amax(dim=1, keepdim=True)
            cosine = cosine.masked_fill(columns == last, 0)
            scores = -cosine.mean(dim=0).softmax(dim=-1)[: before - 8]
            expected = sorted([*best_later_first(scores, after - 8), *range(before - 8, before)])
            assert run.kept_positions[0][layer, head].tolist() == expected

    rkv = reference_generate(model, [Turn(prompt, 20)], method="rkv", mix=1.0, **options)
    snapkv = reference_generate(model, [Turn(prompt, 20)], method="snapkv", window=8, **options)
    assert torch.equal(rkv.kept_positions[0], snapkv.kept_positions[0])


# ---------------------------------------------------------------------------------------------------------------------
# Scores, by hand


def test_rkv_exempts_the_last_similar_key() -> None:
    # Keys 0, 1 and 3 point the same way, key 2 across; key 4 is at 45 degrees to both (cosine 0.707).
    keys = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.5, 0.0], [1.0, 1.0]])
    half = math.sqrt(0.5)
    expected = torch.tensor(
        [
            [0.0, 1.0, 0.0, 1.0, 0.0],  # last above 0.5: key 4
            [1.0, 0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0],
            [1.0, 1.0, 0.0, 0.0, 0.0],
            [half, half, half, 0.0, 0.0],  # key 3; the diagonal is out already
        ]
    )
    torch.testing.assert_close(rkv_similarity(keys), expected)
    means = torch.tensor([2 + half, 2 + half, half, 2.0, 0.0]) / 5
    torch.testing.assert_close(rkv_redundancy(keys), means.exp() / means.exp().sum())


def test_max_pool_and_attention_scores() -> None:
    assert max_pool(torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0]), 3).tolist() == [5.0, 5.0, 5.0, 3.0, 3.0]
    one, zero = math.log(3.0), 0.0
    # Two query heads, one query, two keys. SnapKV: the mean of (3/4, 1/4) and (1/2, 1/2); R-KV: softmax of the maximum.
    logits = torch.tensor([[[one, zero]], [[zero, zero]]])
    torch.testing.assert_close(snapkv_scores(logits, 1), torch.tensor([0.625, 0.375]))
    torch.testing.assert_close(rkv_attention(logits, 1), torch.tensor([0.75, 0.25]))


def test_select_prefers_the_later_of_equals() -> None:
    scores = {0: 1.0, 2: 1.0, 5: 1.0, 7: 0.0, 9: 0.0}
    assert select(scores, 3, 1, ()) == ([2, 5, 9], 0.0)
    assert select(scores, 3, 1, (7,)) == ([5, 7, 9], 0.0)
    assert select(scores, 4, 1, ()) == ([0, 2, 5, 9], 1.0)
