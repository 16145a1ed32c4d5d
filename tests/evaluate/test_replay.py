"""A replay leaves what a decode of the same tokens leaves, token by token, by every method."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import dynts
from decoding import TOLERANCE, ForcedTokens, cached_tokens, predictor_for, random_predictor, random_tokens
from dynts import CompressionConfig, DyntsError, ThinkMarkers
from dynts.cache.interface import CACHE
from dynts.cache.step import Turn
from dynts.evaluate import replay as module
from dynts.evaluate.replay import replay, with_full_cache
from dynts.methods import h2o
from dynts.traces.tokens import TokenizedTrace
from method_table import CASES, THRESHOLDS
from tiny import tiny_model

CONFIG = CompressionConfig(budget=44, local_window=9, retention_ratio=0.4)
QUESTION, THINKING, ANSWER = 11, 60, 30
END = 7  # no random token
TRACE = TokenizedTrace(
    (*random_tokens(QUESTION, 1), *random_tokens(THINKING, 2), END, *random_tokens(ANSWER, 3)),
    question_end=QUESTION,
    thinking_end=QUESTION + THINKING,
    answer_start=QUESTION + THINKING + 1,
)
OPTIONS: dict[str, Any] = {"markers": ThinkMarkers((6,), (END,)), "record": True}


def decode(
    model: PreTrainedModel, method: Any, trace: TokenizedTrace, config: dynts.CompressionConfig = CONFIG
) -> tuple[torch.Tensor, Any, dynts.Session]:
    """Generate the trace itself: the logits that each token was drawn from, statistics, session."""
    with dynts.compress(model, method, config, predictor_for(method), **OPTIONS) as session:
        out = model.generate(
            input_ids=torch.tensor([trace.ids[: trace.question_end]]),
            max_new_tokens=len(trace.ids) - trace.question_end,
            do_sample=False,
            logits_processor=[ForcedTokens(trace.ids)],
            return_dict_in_generate=True,
            output_logits=True,
        )
    assert tuple(out.sequences[0].tolist()) == trace.ids
    return torch.cat(out.logits), session.stats[-1], session


@cache
def full_logits(architecture: str, trace: TokenizedTrace) -> torch.Tensor:
    """What a full cache gives."""
    return decode(tiny_model(architecture), "full", trace)[0]


def check(
    architecture: str, method: Any, trace: TokenizedTrace = TRACE, config: dynts.CompressionConfig = CONFIG
) -> None:
    model, full = tiny_model(architecture), full_logits(architecture, trace)
    logits, stats, decoded = decode(model, method, trace, config)
    session = dynts.compress(model, method, config, predictor_for(method), **OPTIONS)
    found = replay(session, trace)
    assert len(session.kept_positions) == len(decoded.kept_positions) == found.compactions == len(stats.compactions)
    for ours, theirs in zip(session.kept_positions, decoded.kept_positions, strict=True):
        assert torch.equal(ours, theirs)
    expected, drawn = full.log_softmax(-1), logits.log_softmax(-1)
    tokens = torch.tensor(trace.ids[trace.question_end :])[:, None]
    likelihood, loss = drawn.gather(1, tokens)[:, 0], (expected - drawn).gather(1, tokens)[:, 0]
    divergence = torch.nn.functional.kl_div(drawn, expected, reduction="none", log_target=True).sum(-1)
    thinking = trace.answer_start - trace.question_end
    torch.testing.assert_close(found.log_likelihood, likelihood[thinking:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.loss, loss[thinking:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.thinking_loss, loss[:thinking], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found.kl, divergence[thinking:], atol=TOLERANCE, rtol=1e-4)
    assert (found.peak_tokens, found.mean_tokens) == (stats.peak_tokens, stats.mean_tokens)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_equals_a_decode_of_the_same_tokens(architecture: str, name: str) -> None:
    check(architecture, CASES[name].method)


@pytest.mark.quick
@pytest.mark.parametrize("name", THRESHOLDS)
def test_equals_a_decode_with_a_threshold(name: str) -> None:
    check("llama", CASES[name].method, config=replace(CONFIG, threshold=THRESHOLDS[name]))


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "dynts-all, native", "h2o, native", "snapkv", "rkv, native"])
def test_pieces_of_any_size_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 7)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(h2o, "ENTRIES_AT_ONCE", 600)
    check("llama", CASES[name].method)


@pytest.mark.parametrize("thinking", [1, 30, 32, 33, 34])
def test_answers_that_start_around_a_compaction(thinking: int) -> None:
    """The first compaction comes with the 33rd token after the question; answers of 60 tokens outgrow the budget."""
    ids = (*random_tokens(QUESTION, 4), *random_tokens(thinking, 5), END, *random_tokens(60, 6))
    check("llama", "dynts", TokenizedTrace(ids, QUESTION, QUESTION + thinking, QUESTION + thinking + 1))


def test_answer_without_thinking() -> None:
    ids = (*random_tokens(QUESTION, 4), *random_tokens(50, 6))
    check("llama", "window", TokenizedTrace(ids, QUESTION, QUESTION, QUESTION))


@pytest.mark.quick
def test_costs_are_those_of_the_schedule() -> None:
    model = tiny_model("llama")
    passes: list[int] = []
    with model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    ):
        found = replay(
            dynts.compress(model, "dynts", CONFIG, random_predictor(), **OPTIONS), TRACE, with_full_cache(model, TRACE)
        )
    lengths, compactions = cached_tokens(QUESTION, len(TRACE.ids) - QUESTION, CONFIG)
    assert found.compactions == compactions
    assert found.mean_tokens == pytest.approx(sum(lengths) / len(lengths))
    assert found.peak_tokens == max(lengths)
    assert found.kept == lengths[TRACE.answer_start - 1 - QUESTION]
    # with the full cache the question and the rest, under a budget the question and what lies between compactions
    assert len(passes) == 2 + 1 + compactions + 1
    assert sum(passes) == 2 * (len(TRACE.ids) - 1)


@pytest.mark.quick
def test_without_eviction_nothing_moves() -> None:
    model = tiny_model("qwen2")
    for method, config in (("full", CONFIG), ("window", CompressionConfig(200, 50, 0.4))):
        session = dynts.compress(model, method, config, predictor_for(method), **OPTIONS)
        for _ in range(2):  # a session can replay again
            found = replay(session, TRACE)
            assert found.kl.abs().max() < 1e-6
            assert found.thinking_loss.abs().max() < 1e-5
            assert len(found.thinking_loss) == THINKING + 1
            assert (found.compactions, found.peak_tokens) == (0, len(TRACE.ids) - 1)
            assert found.kept == TRACE.answer_start
    assert "generate" not in model.__dict__


def test_less_faithful_with_less_room() -> None:
    model = tiny_model("llama")
    divergences = [
        float(replay(dynts.compress(model, "question-window", CompressionConfig(budget, 9, 0.4)), TRACE).kl.mean())
        for budget in (24, 100, 160)
    ]
    assert divergences[0] > divergences[1] > divergences[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "trace",
    [
        TokenizedTrace((9, 10, 11), 1, 2, 3),  # no answer
        TokenizedTrace((9, 10, 11), 0, 1, 2),  # no question
    ],
)
def test_traces_that_cannot_be_replayed(trace: TokenizedTrace) -> None:
    with pytest.raises(DyntsError, match="needs a question and an answer"):
        replay(dynts.compress(tiny_model("llama"), "window", CONFIG), trace)


def test_a_question_too_long_for_the_budget() -> None:
    session = dynts.compress(tiny_model("llama"), "window", CompressionConfig(20, 9, 0.4))
    with pytest.raises(DyntsError, match="budget 20 is too small for a question of 11"):
        replay(session, TRACE)


def test_tokens_beyond_a_compaction_are_refused() -> None:
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG) as session:
        cache = session.new_cache()
        cache.announced = Turn(0, QUESTION, (QUESTION,))
        ids = torch.tensor([TRACE.ids])
        model(input_ids=ids[:, :QUESTION], **{CACHE: cache})
        assert cache.room == CONFIG.budget - QUESTION
        with pytest.raises(DyntsError, match="feed at most 33"):
            model(input_ids=ids[:, QUESTION : QUESTION + 34], **{CACHE: cache})


@pytest.mark.parametrize("name", ["dynts", "h2o", "snapkv, native"])
def test_rows_of_different_lengths(name: str) -> None:
    """Forced tokens of a padded batch, several at a time and one by one."""
    model = tiny_model("llama")
    rows = torch.tensor([[0, 0, 0, *TRACE.ids[3:80]], TRACE.ids[:80]])
    mask = torch.ones_like(rows)
    mask[0, :3] = 0
    kept, logits = [], []
    for at_once in (1, 6):
        with (
            dynts.compress(model, CASES[name].method, CONFIG, random_predictor(), **OPTIONS) as session,
            torch.no_grad(),
        ):
            cache = session.new_cache()
            cache.announced = Turn(0, QUESTION, (QUESTION - 3, QUESTION))
            model(input_ids=rows[:, :QUESTION], attention_mask=mask[:, :QUESTION], **{CACHE: cache})
            start, last = QUESTION, []
            while start < rows.shape[1]:
                stop = min(start + min(at_once, cache.room or at_once), rows.shape[1])
                last.append(model(input_ids=rows[:, start:stop], **{CACHE: cache}).logits)
                start = stop
        kept.append(session.kept_positions)
        logits.append(torch.cat(last, dim=1))
    assert len(kept[0]) == len(kept[1]) >= 4
    for ours, theirs in zip(*kept, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(logits[0], logits[1], atol=TOLERANCE, rtol=0)
