"""What the embedded model is trained to write: right in every step, and one token a word."""

import re
from statistics import mean

from dynts.chat.prompts import chat_prompt
from dynts.tiny.solve import MAX_NEW_TOKENS, is_solved
from dynts.tiny.task import make_problem
from recipes.embedded_model.solution import write_conclusion, write_response, write_thinking
from recipes.embedded_model.tokenizer import STOP, build_tokenizer


def test_every_step_is_right() -> None:
    """The values themselves are checked against an independent evaluation, in tests/tiny/test_task.py."""
    for seed in range(200):
        problem = make_problem(seed)
        thinking, conclusion = write_thinking(problem), write_conclusion(problem)
        assert is_solved(write_response(problem), problem.answer), seed
        stated = re.findall(r"(\w)= (\d)", thinking)
        assert stated == [(name, str(problem.values[name])) for name in problem.definitions], seed
        for left, operator, right, result in re.findall(r"(\d) ([+-]) (\d) = (\d)", thinking):
            assert eval(left + operator + right) % 10 == int(result), seed
        for name, value in re.findall(r", (\w) (\d)", thinking + conclusion):
            assert problem.values[name] == int(value), seed


def test_a_wrong_or_unfinished_solution_is_not_solved() -> None:
    problem = make_problem(3)
    thinking, conclusion = write_thinking(problem), write_conclusion(problem)
    wrong = re.sub(r"\d", "0", conclusion)
    assert not is_solved(f"{thinking} </think> {wrong}", problem.answer)
    assert not is_solved(f"{thinking} {conclusion}", problem.answer)


def test_traces_are_long_and_fit_the_limit() -> None:
    problems = [make_problem(seed) for seed in range(1000)]
    assert mean(len(write_thinking(problem).split()) for problem in problems) >= 400
    assert max(len(f"{write_response(problem)} {STOP}".split()) for problem in problems) <= MAX_NEW_TOKENS


def test_tokenizer_has_a_token_for_every_word() -> None:
    tokenizer = build_tokenizer()
    for seed in range(200):
        problem = make_problem(seed)
        text = f"{problem.question} {write_response(problem)}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text.split()), seed
        assert tokenizer.unk_token_id not in ids, seed
        assert tokenizer.decode(ids) == text, seed


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
