"""The synthetic task: problems are right, reproducible, and never shared between training and testing."""

import itertools
import re

from dynts.tiny import task
from dynts.tiny.task import HELD_OUT, PREDICTOR, TRAINING, VALIDATION, make_problem


def evaluate(question: str) -> dict[str, int]:
    """All values of a question, by repeated substitution, independent of the task's own code."""
    facts, _, _ = question.partition(" find ")
    values: dict[str, int] = {}
    pending = dict(re.match(r"(\w):?= (.*)", fact.strip()).groups() for fact in facts.split(","))
    while pending:
        for name, text in list(pending.items()):
            if set(re.findall("[a-z]", text)) <= set(values):
                values[name] = eval(text, {}, dict(values)) % 10
                del pending[name]
    return values


def test_values_and_answer_are_right() -> None:
    for seed in range(200):
        problem = make_problem(seed)
        values = evaluate(problem.question)
        assert problem.values == values, seed
        assert list(problem.definitions) == [name for name in sorted(values) if f"{name}:=" in problem.question], seed
        asked = re.findall(r"(\w)\?", problem.question)
        assert problem.answer == f"( {' , '.join(str(values[name]) for name in asked)} )", seed


def test_seed_ranges_do_not_overlap() -> None:
    for first, second in itertools.combinations((HELD_OUT, TRAINING, PREDICTOR, VALIDATION), 2):
        assert first[-1] < second[0] or second[-1] < first[0]


def test_held_out_questions_are_new() -> None:
    trained = {make_problem(seed).question for seed in [*TRAINING[:3000], *PREDICTOR[:1500]]}
    assert not trained & {make_problem(seed).question for seed in HELD_OUT[:500]}


def test_a_seed_is_one_problem() -> None:
    assert make_problem(7) == make_problem(7)
    assert make_problem(7) != make_problem(8)


def test_names_stay_within_the_alphabet() -> None:
    assert len(task.VARIABLES) == task.GIVEN[-1] + task.STEPS[-1] <= 26
