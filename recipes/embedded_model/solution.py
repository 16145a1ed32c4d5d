"""What the embedded model is trained to write: the solution of a problem of its task, as text.

The thinking evaluates the definitions in alphabetical order. Each step copies its definition, recalls both operands,
computes, and then goes over the result again in ways that a reader could skip. The answer recalls value and operands of
each variable that was asked for, and boxes the values.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from dynts.chat.markers import END
from dynts.store.files import write_text_whole
from dynts.tiny.solve import Solution
from dynts.tiny.task import ChainProblem, compute


def write_response(problem: ChainProblem) -> str:
    """Return the whole response: thinking, closing marker and conclusion."""
    return f"{write_thinking(problem)} {END} {write_conclusion(problem)}"


def write_thinking(problem: ChainProblem) -> str:
    """Return the reasoning that the model is trained to write."""
    return " ".join(_write_step(name, problem) for name in problem.definitions)


def write_conclusion(problem: ChainProblem) -> str:
    """Return what the model is trained to write after its thinking, boxed answer included."""
    recalled = [
        f"{_define(name, problem)} , {' , '.join(_recall(each, problem) for each in (name, left, right))} ."
        for name, (left, _, right) in ((name, problem.definitions[name]) for name in problem.asked)
    ]
    return f"{' '.join(recalled)} \\boxed{{ {problem.answer} }}"


def write_traces(path: Path, problems: Sequence[ChainProblem], solutions: Sequence[Solution]) -> None:
    """Write solved problems as JSON Lines for `dynts label`, whole.

    Args:
        path: the file.
        problems: what was asked.
        solutions: what a model wrote on each of them.
    """
    records = [
        {"question": problem.question, "response": solution.text, "answer": problem.answer}
        for problem, solution in zip(problems, solutions, strict=True)
    ]
    write_text_whole(path, "".join(json.dumps(record) + "\n" for record in records))


def _define(name: str, problem: ChainProblem) -> str:
    return f"{name}:= {' '.join(problem.definitions[name])}"


def _recall(name: str, problem: ChainProblem) -> str:
    """Write a value down again.

    Only the first time reads `a= 3`, so that one place in the text is the one to look at.
    """
    return f"{name} {problem.values[name]}"


def _write_step(name: str, problem: ChainProblem) -> str:
    """Write one step of thinking.

    What follows the result depends on the step alone, so that greedy decoding can learn it.
    """
    left, operator, right = problem.definitions[name]
    x, y, result = problem.values[left], problem.values[right], problem.values[name]
    inverse = "-" if operator == "+" else "+"
    equation = f"{x} {operator} {y} = {result}"
    parts = [
        f"{_define(name, problem)} , {_recall(left, problem)} , {_recall(right, problem)} , so {equation} , {name}= "
        f"{result} .",
        f"swap {y} {operator} {x} = {compute(y, operator, x)} , back {result} {inverse} {y} = {x} , good .",
    ]
    if result % 2:
        parts.append(f"wait , maybe {name} is wrong ? again {equation} , keep it .")
    if result >= 5:
        parts.append(f"count {' '.join(str(digit) for digit in range(result + 1))} , fine .")
    else:
        parts.append(f"hmm , {result} is less than 5 , nothing odd here .")
    parts.append(f"done {name} .")
    return " ".join(parts)
