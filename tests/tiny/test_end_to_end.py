"""A model that needs its thinking, solving problems under a budget: a broken selection rule cannot pass."""

import pytest

from dynts.decode.contender import Contender
from dynts.demo.compare import Result, compare, contenders
from dynts.methods.dynts import DynTS
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.training.labels import LABELS

PROBLEMS = [make_problem(seed) for seed in HELD_OUT[:30]]
BELOW_FULL = 0.1
"""Pass@1 that DynTS may lose against the full cache at half of the mean length."""
ABOVE_BASELINES = 0.3
"""Pass@1 that DynTS must be above every method without a predictor there."""
CONTENDERS = {
    contender.name: contender for contender in contenders({label: load_tiny_predictor(label) for label in LABELS})
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    model, tokenizer = load_tiny_model()
    config = schedule(budget_for(0.5))
    return {name: compare(model, tokenizer, PROBLEMS, contender, config) for name, contender in CONTENDERS.items()}


def test_the_full_cache_solves_the_task(results: dict[str, Result]) -> None:
    assert results["full"].pass_at_1 >= 0.95
    assert results["full"].compactions == 0


def test_the_task_needs_thinking() -> None:
    solutions = solve(*load_tiny_model(), PROBLEMS, thinking=False)
    assert sum(solution.correct for solution in solutions) <= 0.1 * len(PROBLEMS)


@pytest.mark.parametrize("label", LABELS)
def test_dynts_is_close_to_the_full_cache(results: dict[str, Result], label: str) -> None:
    assert results[f"dynts, {label} label"].pass_at_1 >= results["full"].pass_at_1 - BELOW_FULL


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "full" and not name.startswith("dynts, ")])
def test_dynts_is_above_every_baseline(results: dict[str, Result], name: str) -> None:
    for label in LABELS:
        assert results[f"dynts, {label} label"].pass_at_1 >= results[name].pass_at_1 + ABOVE_BASELINES


def test_no_method_exceeds_the_budget(results: dict[str, Result]) -> None:
    for name, result in results.items():
        if name != "full":
            assert result.peak_tokens <= budget_for(0.5), name
            assert result.compactions > 0, name
    assert results["full"].peak_tokens > budget_for(0.5)
    compressed = max(result.peak_bytes for name, result in results.items() if name != "full")
    assert compressed < 0.5 * results["full"].peak_bytes


def test_a_predictor_that_knows_nothing_does_not_help(results: dict[str, Result]) -> None:
    blind = Contender("blind", DynTS(), lambda hidden: hidden[..., 0].float())
    model, tokenizer = load_tiny_model()
    result = compare(model, tokenizer, PROBLEMS, blind, schedule(budget_for(0.5)))
    assert result.pass_at_1 <= results["dynts, future label"].pass_at_1 - ABOVE_BASELINES
