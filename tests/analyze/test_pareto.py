"""The Pareto experiment on the embedded model, which needs its thinking."""

from pathlib import Path

import pytest
from scipy.stats import binomtest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.analyze.pareto import Pareto, ParetoOptions, curves, parse_shares
from dynts.analyze.retention import keep_top
from dynts.errors import DyntsError
from dynts.grading.grader import Grader
from dynts.tiny import load_tiny_predictor
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import read_traces

SHARES = (0.0, 0.3, 1.0)


def test_a_few_important_tokens_are_enough(
    embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase], traces: Path
) -> None:
    model, tokenizer = embedded
    options = ParetoOptions(shares=SHARES, max_answer_tokens=80)
    experiment = Pareto(model, tokenizer, load_tiny_predictor("answer"), options)
    rows = []
    with Grader() as grader:
        for place, trace in enumerate(read_traces(traces)[:6]):
            rows.append(experiment.measure(place, trace, tokenize_trace(tokenizer, trace), grader))
    found = curves(rows, SHARES)
    for name, points in found.items():
        nothing, some, everything = (point.correct for point in points)
        assert nothing <= 1, name
        assert everything >= 5, name
        if name.startswith("top"):
            assert some >= 4, name
        else:
            assert some <= 2, name
    assert set(found) == {
        "top, true label",
        "top, predicted",
        "recent",
        "random",
        "bottom, true label",
        "bottom, predicted",
    }


def test_what_tokens_are_chosen_by(embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase], traces: Path) -> None:
    model, tokenizer = embedded
    tokens = tokenize_trace(tokenizer, read_traces(traces)[0])
    experiment = Pareto(model, tokenizer, load_tiny_predictor("future"), ParetoOptions(label="future"))
    scores = experiment.scores(0, tokens)
    length = tokens.thinking_end - tokens.question_end
    assert keep_top(scores["recent"], 0.25).nonzero()[:, 0].tolist() == list(range(length - round(length / 4), length))
    for kind in ("true label", "predicted"):
        top, bottom = (keep_top(scores[f"{end}, {kind}"], 0.2) for end in ("top", "bottom"))
        assert not (top & bottom).any()
    assert (scores["random"] == experiment.scores(0, tokens)["random"]).all()
    assert (scores["random"] != experiment.scores(1, tokens)["random"]).any()


def test_curves_count_answers() -> None:
    rows = [
        {"correct": {"a": [True, False], "b": [False, False]}, "truncated": {"a": [False, True], "b": [True, True]}},
        {"correct": {"a": [True, True], "b": [False, True]}, "truncated": {"a": [False, False], "b": [True, False]}},
    ]
    found = curves(rows, (0.1, 1.0))
    assert [(point.share, point.correct, point.truncated) for point in found["a"]] == [(0.1, 2, 0), (1.0, 1, 1)]
    assert [(point.share, point.correct, point.truncated) for point in found["b"]] == [(0.1, 0, 2), (1.0, 1, 1)]
    interval = binomtest(1, 2).proportion_ci(method="wilson")
    assert (found["a"][1].low, found["a"][1].high) == (interval.low, interval.high)


def test_bad_settings(embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    assert parse_shares("0,2.5, 100") == (0, 0.025, 1)
    for text, problem in (
        ("10,5", "ascending"),
        ("0,120", "between 0 and 100%"),
        ("-1", "between 0"),
        ("nan", "between"),
    ):
        with pytest.raises(DyntsError, match=problem):
            ParetoOptions(shares=parse_shares(text))
    with pytest.raises(DyntsError, match="'few'"):
        parse_shares("few")
    with pytest.raises(DyntsError, match="batch must be a whole number of at least 1, got 0"):
        ParetoOptions(batch=0)
    with pytest.raises(DyntsError, match="give --label future"):
        Pareto(*embedded, load_tiny_predictor("future"), ParetoOptions())
