"""A model that needs its thinking, solving problems under a budget: a broken selection rule cannot pass."""

import pytest

from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.demo.compare import Result, compare
from dynts.methods import DynTS, DynTSRandom, Full, Window
from dynts.tiny import LABELS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import mean_length, solve
from dynts.tiny.task import HELD_OUT, make_problem

PROBLEMS = [make_problem(seed, steps=range(4, 6)) for seed in HELD_OUT[:24]]
CONFIG = CompressionConfig(budget=188, local_window=59, retention_ratio=2 / 3)
"""Half of these problems' mean length; the demo's schedule, for questions of 41 tokens."""
SOLVED = 0.85
"""Pass@1 that DynTS must reach under the budget; it was 0.97 and 1.0 when this was written."""
UNSOLVED = 0.5
"""Pass@1 that a choice of tokens which knows nothing may reach; it was 0.37 at most."""


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """DynTS with each predictor, the full cache, and choices that know nothing of what a token means."""
    model, tokenizer = load_tiny_model()
    arms = {
        "full": Arm(Full()),
        **{label: Arm(DynTS(), predictor=load_tiny_predictor(label)) for label in LABELS},
        "window": Arm(Window(protect_question=True)),
        "random": Arm(DynTSRandom()),
        "blind": Arm(DynTS(), predictor=lambda hidden: hidden[..., 0].float()),
    }
    return {name: compare(model, tokenizer, PROBLEMS, arm, CONFIG) for name, arm in arms.items()}


def test_the_full_cache_solves_the_task(results: dict[str, Result]) -> None:
    full = results["full"]
    assert full.pass_at_1 >= 0.95
    assert full.compactions == 0
    assert CONFIG.budget == pytest.approx(0.5 * mean_length(full.solutions), rel=0.02)


def test_the_task_needs_thinking() -> None:
    solutions = solve(*load_tiny_model(), PROBLEMS, thinking=False)
    assert sum(solution.correct for solution in solutions) <= 0.1 * len(PROBLEMS)


@pytest.mark.parametrize("label", LABELS)
def test_dynts_solves_the_task_under_the_budget(results: dict[str, Result], label: str) -> None:
    assert results[label].pass_at_1 >= SOLVED


@pytest.mark.parametrize("name", ["window", "random", "blind"])
def test_what_knows_nothing_does_not(results: dict[str, Result], name: str) -> None:
    assert results[name].pass_at_1 <= UNSOLVED


def test_no_method_exceeds_the_budget(results: dict[str, Result]) -> None:
    for name, result in results.items():
        if name != "full":
            assert result.peak_tokens <= CONFIG.budget, name
            assert result.compactions > 0, name
    assert results["full"].peak_tokens > CONFIG.budget
    compressed = max(result.peak_bytes for name, result in results.items() if name != "full")
    assert compressed < 0.5 * results["full"].peak_bytes
