"""The synthetic reasoning task of the embedded model: chains of arithmetic modulo 10 over one-letter variables.

A question gives a few values and the definitions of further variables in shuffled order, and asks for some of the
latter, chosen so that the answer needs most of the results:

    b= 5 , d:= a - c , a= 3 , c:= a + b , ... find d? f? e? c? .

Operands are drawn from all earlier variables, so an old result can be needed again at any distance: keeping only recent
tokens cannot work, by construction. What the model was trained to write is in the recipe, outside the package
(`recipes/embedded_model/solution.py`).
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase

HELD_OUT = range(0, 100_000)
"""Seeds of problems that no training has seen."""
TRAINING = range(1_000_000, 2_000_000)
"""Seeds of the problems that the model is trained on."""
PREDICTOR = range(2_000_000, 2_100_000)
"""Seeds of the problems whose traces train the importance predictors."""
VALIDATION = range(3_000_000, 3_100_000)
"""Seeds of the problems that are looked at during training."""

STEPS = range(4, 13)
"""How many definitions a problem has, unless said otherwise."""
QUERIES = 4
"""How many of the variables defined are asked for, chosen so that the answer needs most of the results."""
GIVEN = range(2, 5)
"""How many values are given."""
VARIABLES = ascii_lowercase[: GIVEN[-1] + STEPS[-1]]
OPERATORS = "+-"

Definition = tuple[str, str, str]
"""Left operand, operator and right operand."""


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """A question with its one right answer.

    Args:
        question: what is asked, words separated by spaces.
        answer: the gold answer: the values asked for, as a tuple.
        asked: the variables to find, in the order of the answer.
        definitions: of the variables that are not given, in alphabetical order.
        values: of all variables, given and defined.
    """

    question: str
    answer: str
    asked: tuple[str, ...]
    definitions: Mapping[str, Definition]
    values: Mapping[str, int]


def make_problem(seed: int, steps: range = STEPS) -> ChainProblem:
    """Return the problem of a seed: the same seed and steps give the same problem everywhere.

    Args:
        seed: of the problem, from one of the ranges above.
        steps: how many definitions it may have.
    """
    rng = random.Random(seed)
    given, defined = rng.choice(GIVEN), rng.choice(steps)
    names = VARIABLES[: given + defined]
    values = {name: rng.randrange(10) for name in names[:given]}
    definitions: dict[str, Definition] = {}
    facts = [f"{name}= {value}" for name, value in values.items()]
    for index in range(given, given + defined):
        left, right = rng.sample(names[:index], 2)
        operator = rng.choice(OPERATORS)
        definitions[names[index]] = left, operator, right
        values[names[index]] = compute(values[left], operator, values[right])
        facts.append(f"{names[index]}:= {left} {operator} {right}")
    rng.shuffle(facts)
    asked = _choose(definitions, rng)
    return ChainProblem(write_question(facts, asked), write_answer(asked, values), tuple(asked), definitions, values)


def write_question(facts: Iterable[str], asked: Iterable[str]) -> str:
    """Return the text of a question.

    Args:
        facts: such as `a= 3` and `c:= a + b`.
        asked: names of variables.
    """
    return f"{' , '.join(facts)} find {' '.join(f'{name}?' for name in asked)} ."


def write_answer(asked: Iterable[str], values: Mapping[str, int]) -> str:
    """Return the right answer to a question, as the model boxes it.

    Args:
        asked: names of variables.
        values: of these variables, and perhaps of others.
    """
    return f"( {' , '.join(str(values[name]) for name in asked)} )"


def compute(left: int, operator: str, right: int) -> int:
    """Return the result of one operation, modulo 10.

    Args:
        left: a digit.
        operator: "+" or "-".
        right: a digit.
    """
    return (left + right if operator == "+" else left - right) % 10


def _choose(definitions: Mapping[str, Definition], rng: random.Random) -> list[str]:
    """Choose the variables to ask for: always the one that brings most results into the answer, chance among equals."""
    asked: list[str] = []
    recalled: set[str] = set()
    while len(asked) < min(QUERIES, len(definitions)):
        rest = [name for name in definitions if name not in asked]
        rng.shuffle(rest)
        results = {name: {name, *definitions[name][::2]} & definitions.keys() for name in rest}
        best = max(rest, key=lambda name: len(results[name] - recalled))
        asked.append(best)
        recalled |= results[best]
    rng.shuffle(asked)
    return asked
