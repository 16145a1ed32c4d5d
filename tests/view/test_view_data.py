"""The data of a page: kept tokens against `generate` and against the slow reference, scores against the labeller."""

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from decoding import random_predictor, random_tokens
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.errors import DyntsError
from dynts.methods import H2O, RKV, SnapKV, resolve_method
from dynts.predictor.model import ImportancePredictor
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace
from dynts.training.labels import label_trace
from dynts.view.chosen import choose_methods, choose_trace, load_predictors, tokenize_chosen
from dynts.view.data import TraceView, token_texts, view_trace
from dynts.view.forced_decode import KeptTokens, forced_decode
from forced_generate import forced_generate
from nasty_trace import CONFIG
from reference import Turn, reference_generate
from tiny import tiny_model

SMALL = CompressionConfig(budget=44, local_window=9, retention_ratio=0.4)


def holders_after(kept: KeptTokens, total: int) -> list[tuple[int, list[int]]]:
    """Step of each compaction, and by position how many sets hold a token after it."""
    holders, found = [kept.sets] * total, []
    for eviction in kept.evictions:
        for position, count in zip(eviction.positions.tolist(), eviction.holders.tolist(), strict=True):
            assert count < holders[position]
            holders[position] = count
        found.append((eviction.step, list(holders)))
    return found


@pytest.mark.parametrize("name", ["dynts", "window", "rkv", "h2o, native", "snapkv, native"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_kept_tokens_are_those_of_the_reference(architecture: str, name: str) -> None:
    model, predictor, ids = tiny_model(architecture), random_predictor(), tuple(random_tokens(110, seed=3))
    native = {"h2o, native": H2O(granularity="native"), "snapkv, native": SnapKV(granularity="native")}
    method = native[name] if name in native else resolve_method(name)
    tokens = TokenizedTrace(ids, question_end=11, thinking_end=90, answer_start=91)
    kept = forced_decode(model, None, tokens, Arm(method, predictor=predictor), SMALL)
    run = reference_generate(
        model,
        [Turn(list(ids[:11]), 99)],
        method=name.split(",")[0],
        budget=44,
        local_window=9,
        retention_ratio=0.4,
        granularity="native" if name in native else "shared",
        predictor=predictor,
        forced=[list(ids[11:])],
    )
    assert len(run.compactions) >= 3
    assert [(item.step, item.before, item.after) for item in kept.evictions] == run.compactions
    for (step, holders), positions in zip(holders_after(kept, 110), run.kept_positions, strict=True):
        expected = Counter(positions.flatten().tolist())
        assert holders[: 11 + step] == [expected[position] for position in range(11 + step)]


@pytest.mark.quick
def test_kept_tokens_are_those_of_generate(model: PreTrainedModel, shown: TraceView, methods: list[Arm]) -> None:
    ids, question = shown.tokens.ids, shown.tokens.question_end
    for viewed, kept in zip(methods, shown.kept, strict=True):
        expected = forced_generate(model, ids, question, copy.deepcopy(viewed), CONFIG)
        assert len(kept.evictions) >= 3
        assert [item.step for item in kept.evictions] == [step for step, _ in expected.compactions]
        for (step, holders), (_, sets) in zip(holders_after(kept, len(ids)), expected.compactions, strict=True):
            counts = Counter(position for held in sets for position in held)
            assert kept.sets == len(sets)
            assert holders[: question + step] == [counts[position] for position in range(question + step)]


def test_importance_is_that_of_the_labeller(
    model: PreTrainedModel, shown: TraceView, predictor: ImportancePredictor
) -> None:
    labelled = label_trace(model, shown.tokens, chunk=7)
    assert [(item.kind, item.name) for item in shown.importances] == [
        ("true", "answer"),
        ("true", "future"),
        ("predicted", "answer"),
    ]
    for item in shown.importances[:2]:
        torch.testing.assert_close(item.values, labelled.labels[item.name], equal_nan=True)
    with torch.no_grad():
        torch.testing.assert_close(shown.importances[2].values, predictor(labelled.hidden))


def test_future_label_has_the_window_of_its_predictor(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, trace: Trace
) -> None:
    predictor = random_predictor()
    predictor.config = replace(predictor.config, future_window=5)
    tokens = tokenize_chosen(tokenizer, trace)
    seen = view_trace(model, tokenizer, trace, tokens, [], CONFIG, {"future": predictor}).importances[1].values
    torch.testing.assert_close(seen, label_trace(model, tokens, future_window=5).labels["future"], equal_nan=True)


@pytest.mark.quick
def test_texts_hold_whole_characters(tokenizer: PreTrainedTokenizerFast, shown: TraceView, trace: Trace) -> None:
    texts, ids = shown.texts, shown.tokens.ids
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)
    assert trace.response.partition("</think>")[0] in "".join(texts)
    at = texts.index("😀")
    assert texts[at - 3 : at] == ["", "", ""]
    assert tokenizer.decode(ids[at - 3 : at + 1]) == "😀"
    # the only replacement character is the one that the trace has
    assert "".join(texts).count("\ufffd") == 1


def test_text_that_breaks_off_inside_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("one 😀", add_special_tokens=False)[:-1]
    texts = token_texts(tokenizer, ids)
    assert texts[-3:] == ["", "", "\ufffd"]
    assert token_texts(tokenizer, []) == []


def test_the_right_trace_is_chosen() -> None:
    traces = [Trace(f"t{index}", f"what is\n{index} plus 1", "x</think>y", "1") for index in range(9)]
    assert choose_trace(traces).id == "t0"
    assert choose_trace(traces, "t4").id == "t4"
    assert choose_trace(traces, question="is 7  plus").id == "t7"
    with pytest.raises(
        DyntsError, match=r"no trace has the id 'zz'; ids here: t0, t1, t2, t3, t4, \.\.\. \(9 in all\)"
    ):
        choose_trace(traces, "zz")
    with pytest.raises(DyntsError, match=r"no question contains 'apples'; ids here: t0"):
        choose_trace(traces, question="apples")
    with pytest.raises(DyntsError, match=r"9 questions contain 'plus'.*--id: t0"):
        choose_trace(traces, question="plus")
    with pytest.raises(DyntsError, match="either --id or --question"):
        choose_trace(traces, "t1", "plus")


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("still thinking", "no closing think marker"),
        ("</think> 3", "no thinking before"),
    ],
)
def test_unfit_traces_are_refused(tokenizer: PreTrainedTokenizerFast, response: str, message: str) -> None:
    with pytest.raises(DyntsError, match=message):
        tokenize_chosen(tokenizer, Trace("t", "one?", response, "3"))


def test_methods_that_need_a_predictor_come_once_for_each() -> None:
    first, second = random_predictor(seed=1), random_predictor(seed=2)
    chosen = choose_methods(["dynts", "rkv"], {"answer": first, "future": second}, native=True, protect_question=True)
    assert [viewed.name(question=False) for viewed in chosen] == [
        "dynts, answer label",
        "dynts, future label",
        "rkv",
        "rkv, native",
    ]
    assert [viewed.predictor for viewed in chosen] == [first, second, None, None]
    assert isinstance(chosen[3].method, RKV)
    assert chosen[3].method.granularity == "native"
    assert all(viewed.method.protect_question for viewed in chosen)
    [shared, native] = choose_methods(["dynts"], {"answer-native": random_predictor(native=True)}, native=True)
    assert (shared.name(), native.name()) == ("dynts", "dynts, native")
    assert native.method.granularity == "native"
    assert not choose_methods(["rkv"], {})[0].method.protect_question
    with pytest.raises(DyntsError, match="method 'dynts' needs --predictor"):
        choose_methods(["dynts"], {})
    with pytest.raises(DyntsError, match="given twice"):
        choose_methods(["rkv", "rkv"], {})
    with pytest.raises(DyntsError, match="unknown method 'dints'"):
        choose_methods(["dints"], {})
    with pytest.raises(DyntsError, match="given twice"):
        load_predictors(["a", "a"])
