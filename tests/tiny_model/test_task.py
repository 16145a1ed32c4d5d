"""The synthetic task: problems are right, reproducible, and never shared between training and testing."""

import itertools
import re
from statistics import mean

import pytest

from dynts.chat.prompts import chat_prompt
from dynts.tiny import task
from dynts.tiny.solve import MAX_NEW_TOKENS, is_solved
from dynts.tiny.task import HELD_OUT, PREDICTOR, TRAINING, VALIDATION, make_problem
from dynts.tiny.tokenizer import build_tokenizer


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


@pytest.mark.parametrize("seed", range(200))
def test_answer_and_every_step_are_right(seed: int) -> None:
    problem = make_problem(seed)
    values = evaluate(problem.question)
    asked = re.findall(r"(\w)\?", problem.question)
    assert problem.answer == f"( {' , '.join(str(values[name]) for name in asked)} )"
    assert is_solved(f"{problem.thinking} </think> {problem.conclusion}", problem.answer)
    stated = re.findall(r"(\w)= (\d)", problem.thinking)
    assert stated == [(name, str(values[name])) for name in sorted(values) if f"{name}:=" in problem.question]
    for left, operator, right, result in re.findall(r"(\d) ([+-]) (\d) = (\d)", problem.thinking):
        assert eval(left + operator + right) % 10 == int(result)
    for name, value in re.findall(r", (\w) (\d)", problem.thinking + problem.conclusion):
        assert values[name] == int(value)


def test_a_wrong_or_unfinished_solution_is_not_solved() -> None:
    problem = make_problem(3)
    wrong = re.sub(r"\d", "0", problem.conclusion)
    assert not is_solved(f"{problem.thinking} </think> {wrong}", problem.answer)
    assert not is_solved(f"{problem.thinking} {problem.conclusion}", problem.answer)


def test_seed_ranges_do_not_overlap() -> None:
    for first, second in itertools.combinations((HELD_OUT, TRAINING, PREDICTOR, VALIDATION), 2):
        assert first[-1] < second[0] or second[-1] < first[0]


def test_held_out_questions_are_new() -> None:
    trained = {make_problem(seed).question for seed in [*TRAINING[:3000], *PREDICTOR[:1500]]}
    assert not trained & {make_problem(seed).question for seed in HELD_OUT[:500]}


def test_a_seed_is_one_problem() -> None:
    assert make_problem(7) == make_problem(7)
    assert make_problem(7) != make_problem(8)


def test_traces_are_long_and_fit_the_limit() -> None:
    problems = [make_problem(seed) for seed in range(1000)]
    lengths = [len(problem.thinking.split()) for problem in problems]
    assert mean(lengths) >= 400
    written = [len(f"{problem.thinking} </think> {problem.conclusion} <stop>".split()) for problem in problems]
    assert max(written) <= MAX_NEW_TOKENS


def test_tokenizer_has_a_token_for_every_word() -> None:
    tokenizer = build_tokenizer()
    for seed in range(200):
        problem = make_problem(seed)
        text = f"{problem.question} {problem.thinking} </think> {problem.conclusion}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_prompt_ends_in_an_open_think_marker_and_costs_one_token_for_the_instruction() -> None:
    tokenizer = build_tokenizer()
    problem = make_problem(0)
    tokens = tokenizer.tokenize(chat_prompt(tokenizer, problem.question))
    assert tokens[-1] == "<think>"
    # begin, user, instruction, assistant, think
    assert len(tokens) == len(problem.question.split()) + 5
    assert tokenizer.unk_token not in tokens


def test_spaces_between_words_are_free() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("a=3,c:=a+b find c.") == tokenizer.tokenize("a= 3 , c:= a + b find c .")


def test_names_stay_within_the_alphabet() -> None:
    assert len(task.VARIABLES) == task.GIVEN[-1] + task.STEPS[-1] <= 26
