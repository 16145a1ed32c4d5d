"""A threshold on scores: the cache holds what lies above it, and never more than the budget."""

from dataclasses import replace

import pytest
import torch

import dynts
from against_reference import CONFIG, check_row, reference_of
from decoding import converse, random_tokens
from dynts.cache.lengths import cache_lengths
from dynts.cache.selection import needed
from dynts.chat.options import ChatOptions
from dynts.decode.arm import Arm
from dynts.engines.settings import PluginSettings
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import METHODS
from joined_rows import check_joined, run_joining, some_stream
from method_table import CASES, THRESHOLDS, named
from reference import Turn
from tiny import tiny_model

ADAPTIVE = {name: replace(CONFIG, threshold=threshold) for name, threshold in THRESHOLDS.items()}
LOWEST, HIGHEST = -1e6, 1e6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_single_row_equals_the_reference(name: str) -> None:
    model, config, prompt = tiny_model("llama"), ADAPTIVE[name], random_tokens(7, seed=5)
    talk = converse(model, [([prompt], 60)], CASES[name].method, config)
    run = reference_of(model, name, [Turn(prompt, 60)], [talk.tokens[0][0]], config)
    check_row(talk, 0, run)
    stats = talk.session.stats[0]
    assert [tuple(event) for event in stats.compactions] == run.compactions
    assert stats.peak_tokens <= CONFIG.budget
    assert len({after for _, _, after in run.compactions}) > 1, "how many stay depends on the scores"
    assert any(before < CONFIG.budget for _, before, _ in run.compactions), "and so does when some go"


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("dynts", "gemma3"), ("dynts-all, native", "qwen2"), ("h2o, native", "qwen2"), ("snapkv", "gemma3")],
)
def test_turns_of_a_padded_batch_equal_the_reference(name: str, architecture: str) -> None:
    model, config = tiny_model(architecture), ADAPTIVE[name]
    # a sliding window counts columns, so padding in the middle of a conversation takes room in it
    first = [random_tokens(3, 12), random_tokens(7, 13)]
    second = [random_tokens(4, 14), random_tokens(4 if architecture == "gemma3" else 2, 15)]
    talk = converse(model, [(first, 28), (second, 28)], CASES[name].method, config)
    for row in range(2):
        turns = [Turn(first[row], 28), Turn(second[row], 28)]
        check_row(talk, row, reference_of(model, name, turns, [tokens[row] for tokens in talk.tokens], config))


@pytest.mark.parametrize("name", ["dynts, native", "h2o"])
def test_rows_that_join_and_leave_equal_the_reference(name: str) -> None:
    model, stream, config = tiny_model("qwen3"), some_stream(), ADAPTIVE[name]
    run_joining(model, name, stream, rows=3, prefill_tokens=4, config=config)
    for each in stream:
        check_joined(model, name, each, config=config)


@pytest.mark.quick
@pytest.mark.parametrize("name", THRESHOLDS)
def test_below_every_score_it_changes_nothing(name: str) -> None:
    model, turns = tiny_model("llama"), [([random_tokens(7, 5), random_tokens(3, 6)], 40)]
    plain = converse(model, turns, CASES[name].method, CONFIG)
    talk = converse(model, turns, CASES[name].method, replace(CONFIG, threshold=LOWEST))
    assert talk.session.stats == plain.session.stats
    pairs = zip(talk.session.kept_positions, plain.session.kept_positions, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "random, native"])
def test_above_every_score_only_question_and_window_stay(name: str) -> None:
    config = replace(CONFIG, threshold=HIGHEST)
    talk = converse(tiny_model("llama"), [([random_tokens(8, 5)], 40)], CASES[name].method, config)
    # 14 are free, of which 5 would be selected: 9 come beside question and window before they go
    events = [(step, 23, 14) for step in (15, 24, 33)]
    stats = talk.session.stats[0]
    assert [tuple(event) for event in stats.compactions] == events
    assert all(kept[..., :8].flatten(0, -2).eq(torch.arange(8)).all() for kept in talk.session.kept_positions)
    steps = [*range(9, 24), *range(15, 24), *range(15, 24), *range(15, 21)]
    assert (stats.peak_tokens, stats.mean_tokens) == (23, sum(steps) / len(steps))


@pytest.mark.quick
def test_the_head_that_needs_most_decides() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.0, 0.0], [0.0, 0.7, 0.0, 0.0, torch.nan]]).view(2, 1, 1, 5)
    lengths, most = torch.tensor([5]), torch.tensor([5])
    assert needed(scores, lengths, most, 1, 0.5).tolist() == [3]
    assert needed(scores, lengths, torch.tensor([2]), 1, 0.5).tolist() == [2]
    assert needed(scores, lengths, most, 1, 0.8).tolist() == [2], "above, not at"
    question = torch.tensor([False, True, False, False, False]).view(1, 1, 1, 5)
    assert needed(scores, lengths, most, 2, 0.5, question=question).tolist() == [5]
    assert needed(scores, lengths, most, 1, 9.0, answer=question).tolist() == [2]


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
def test_methods_that_go_by_places_refuse_it(name: str) -> None:
    config, method = replace(CONFIG, threshold=0.5), named(name)
    if not {"window", "question-window", "streaming-llm", "sepllm"} & {name}:
        assert ("threshold 0.5" in Arm(method, config).traits()) == (name != "full")
        return
    for make in (Arm, lambda *given: dynts.compress(tiny_model("llama"), *given)):
        with pytest.raises(UnsupportedError, match=rf"threshold 0\.5: method '{name}'"):
            make(method, config)


@pytest.mark.quick
def test_what_cannot_be_is_refused() -> None:
    for wrong in ("0.5", True):
        with pytest.raises(DyntsError, match="must be a number"):
            replace(CONFIG, threshold=wrong)
    with pytest.raises(DyntsError, match="must be a finite number, got nan"):
        replace(CONFIG, threshold=float("nan"))
    with pytest.raises(DyntsError, match="local_window of at least 1"):
        replace(CONFIG, threshold=0.5, local_window=0)
    config = replace(CONFIG, threshold=0.5)
    with pytest.raises(UnsupportedError, match=r"threshold 0\.5 depends on their scores"):
        cache_lengths(10, 50, config)
    with pytest.raises(UnsupportedError, match=r"vLLM and SGLang.*--engine transformers"):
        PluginSettings.of(Arm(named("dynts"), config, "predictor"), ChatOptions())
