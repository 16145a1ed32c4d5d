"""Read a problem that a user types: the number of a held-out one, or a question in the task's notation."""

import re
from dataclasses import dataclass

from dynts.errors import DyntsError
from dynts.tiny.task import (
    GIVEN,
    HELD_OUT,
    QUERIES,
    STEPS,
    VARIABLES,
    Definition,
    compute,
    make_problem,
    write_answer,
    write_question,
)

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_QUESTION = re.compile(r"(.*)\bfind\b(.*)", re.DOTALL)
_FACT = re.compile(r"([a-z])\s*(?:=\s*([0-9])|:=\s*([a-z])\s*([+-])\s*([a-z]))")

# the first problems of the training are shorter than those that the model is tested on
_TRAINED_STEPS = range(2, STEPS.stop)
_UNFAMILIAR = (
    f"the model has not been trained on questions of this shape, so its answer may be wrong with any cache. "
    f"It knows {GIVEN[0]} to {GIVEN[-1]} values (a=3, b=5, ...), then {_TRAINED_STEPS[0]} to {_TRAINED_STEPS[-1]} "
    f"definitions by two different letters that go on in the alphabet (c:=a+b, ...), and {QUERIES} of the definitions "
    f"to find (all where there are fewer)"
)


@dataclass(frozen=True, slots=True)
class AskedProblem:
    """A question with its one right answer.

    Args:
        question: what is asked, spaced as `dynts.tiny.task` does.
        answer: the gold answer: the values asked for, as a tuple.
        warning: what to tell the user about the question, if anything.
    """

    question: str
    answer: str
    warning: str | None = None


def parse_question(text: str) -> AskedProblem:
    """Return the problem that a text stands for, and its answer.

    Args:
        text: the number of a held-out problem, or a question such as "b=5, d:=a-c, a=3, c:=a+b find d, c." The order of
            the facts, the spaces and the last dot are free.

    Raises:
        DyntsError: there is no such problem, or the question has no answer; the message names what is wrong.
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return _held_out(int(text))
    halves = _QUESTION.fullmatch(text)
    if halves is None:
        raise DyntsError(f"the question {text!r} does not say what to find: end it with, for example, 'find d, c.'")
    facts, values, definitions = _read_facts(halves[1])
    trained = _is_trained_shape(sorted(values), definitions)
    for name in sorted(definitions):
        left, operator, right = definitions[name]
        for operand in (left, right):
            if operand not in values and operand not in definitions:
                raise DyntsError(f"{name} needs {operand}, which has no value: add a fact such as {operand}=3")
            if operand >= name:
                raise DyntsError(
                    f"{name} needs {operand}: the model goes through the alphabet once, "
                    "so a definition can use earlier letters only; swap the names"
                )
        values[name] = compute(values[left], operator, values[right])
    asked = _read_asked(halves[2], values)
    trained = trained and len(asked) == min(QUERIES, len(definitions)) and set(asked) <= set(definitions)
    return AskedProblem(
        question=write_question(facts, asked),
        answer=write_answer(asked, values),
        warning=None if trained else _UNFAMILIAR,
    )


def _held_out(seed: int) -> AskedProblem:
    if seed not in HELD_OUT:
        raise DyntsError(f"there is no held-out problem {seed}: they are numbered {HELD_OUT[0]} to {HELD_OUT[-1]}")
    problem = make_problem(seed)
    return AskedProblem(problem.question, problem.answer)


def _read_facts(text: str) -> tuple[list[str], dict[str, int], dict[str, Definition]]:
    """Return the facts as the task writes them, the given values, and the definitions."""
    facts: list[str] = []
    values: dict[str, int] = {}
    definitions: dict[str, Definition] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        fact = _FACT.fullmatch(part)
        if fact is None:
            raise DyntsError(
                f"cannot read {part!r}: facts are values of one digit such as a=3 and definitions such as d:=a-c "
                "(two letters with + or -), with commas between them"
            )
        name, value, left, operator, right = fact.groups()
        for letter in filter(None, (name, left, right)):
            if letter not in VARIABLES:
                raise DyntsError(
                    f"{letter!r} in {part!r} is no name that the model knows: use {VARIABLES[0]} to {VARIABLES[-1]}"
                )
        if name in values or name in definitions:
            raise DyntsError(f"{name} is set twice, the second time by {part!r}: leave one of the two out")
        if value:
            values[name] = int(value)
            facts.append(f"{name}= {value}")
        else:
            definitions[name] = left, operator, right
            facts.append(f"{name}:= {left} {operator} {right}")
    return facts, values, definitions


def _read_asked(text: str, values: dict[str, int]) -> list[str]:
    asked: list[str] = re.findall(r"[^\s,?]+", text.strip().removesuffix("."))
    if not asked:
        raise DyntsError("nothing stands after 'find': write what to find, for example 'find d, c.'")
    for index, name in enumerate(asked):
        if name not in values:
            raise DyntsError(f"cannot find {name!r}: the question sets {', '.join(sorted(values)) or 'nothing'}")
        if name in asked[:index]:
            raise DyntsError(f"{name} is to be found twice: leave one of the two out")
    return asked


def _is_trained_shape(given: list[str], definitions: dict[str, Definition]) -> bool:
    """Return whether training had facts like these."""
    return (
        len(given) in GIVEN
        and len(definitions) in _TRAINED_STEPS
        and "".join([*given, *sorted(definitions)]) == VARIABLES[: len(given) + len(definitions)]
        and all(left != right for left, _, right in definitions.values())
    )
