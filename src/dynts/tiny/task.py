"""The synthetic reasoning task of the embedded model: chains of arithmetic modulo 10 over one-letter variables.

A question gives a few values and the definitions of further variables in shuffled order, and asks for some of the latter,
chosen so that the answer needs most of the results:

    b= 5 , d:= a - c , a= 3 , c:= a + b , ... find d? f? e? c? .

The thinking evaluates the definitions in alphabetical order. Each step copies its definition, recalls both operands,
computes, and then goes over the result again in ways that a reader could skip. The answer recalls value and operands of
each variable that was asked for, and boxes the values. Operands are drawn from all earlier variables, so an old result can
be needed again at any distance: keeping only recent tokens cannot work, by construction.
"""

import random
from collections.abc import Iterable
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


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its one right answer.

    Args:
        question: what is asked, words separated by spaces.
        thinking: the reasoning that the model is trained to write.
        conclusion: what it is trained to write after its thinking, boxed answer included.
        answer: the gold answer: the values asked for, as a tuple.
    """

    question: str
    thinking: str
    conclusion: str
    answer: str


def make_problem(seed: int, steps: range = STEPS) -> Problem:
    """The problem of a seed: the same seed and steps give the same problem everywhere."""
    rng = random.Random(seed)
    given, defined = rng.choice(GIVEN), rng.choice(steps)
    names = VARIABLES[: given + defined]
    values = {name: rng.randrange(10) for name in names[:given]}
    definitions: dict[str, tuple[str, str, str]] = {}
    facts = [f"{name}= {value}" for name, value in values.items()]
    for index in range(given, given + defined):
        left, right = rng.sample(names[:index], 2)
        operator = rng.choice(OPERATORS)
        definitions[names[index]] = left, operator, right
        values[names[index]] = compute(values[left], operator, values[right])
        facts.append(f"{names[index]}:= {left} {operator} {right}")
    rng.shuffle(facts)
    asked = _choose(definitions, rng)
    answer = f"( {' , '.join(str(values[name]) for name in asked)} )"
    conclusion = [_conclude(name, definitions, values) for name in asked]
    return Problem(
        question=write_question(facts, asked),
        thinking=" ".join(_step(name, definitions, values) for name in definitions),
        conclusion=f"{' '.join(conclusion)} \\boxed{{ {answer} }}",
        answer=answer,
    )


def write_question(facts: Iterable[str], asked: Iterable[str]) -> str:
    """The text of a question.

    Args:
        facts: such as `a= 3` and `c:= a + b`.
        asked: names of variables.
    """
    return f"{' , '.join(facts)} find {' '.join(f'{name}?' for name in asked)} ."


def compute(left: int, operator: str, right: int) -> int:
    """The result of one operation, modulo 10."""
    return (left + right if operator == "+" else left - right) % 10


def _choose(definitions: dict[str, tuple[str, str, str]], rng: random.Random) -> list[str]:
    """The variables to ask for: one after another the one that brings most results into the answer, chance among equals."""
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


def _define(name: str, definitions: dict[str, tuple[str, str, str]]) -> str:
    return f"{name}:= {' '.join(definitions[name])}"


def _conclude(name: str, definitions: dict[str, tuple[str, str, str]], values: dict[str, int]) -> str:
    left, _, right = definitions[name]
    recalled = " , ".join(_recall(variable, values) for variable in (name, left, right))
    return f"{_define(name, definitions)} , {recalled} ."


def _recall(name: str, values: dict[str, int]) -> str:
    """A value written down again. Only the first time reads `a= 3`, so that one place in the text is the one to look at."""
    return f"{name} {values[name]}"


def _step(name: str, definitions: dict[str, tuple[str, str, str]], values: dict[str, int]) -> str:
    """One step of thinking. What follows the result depends on the step alone, so that greedy decoding can learn it."""
    left, operator, right = definitions[name]
    x, y, result = values[left], values[right], values[name]
    equation = f"{x} {operator} {y} = {result}"
    inverse = "-" if operator == "+" else "+"
    recalled = f"{_recall(left, values)} , {_recall(right, values)}"
    parts = [
        f"{_define(name, definitions)} , {recalled} , so {equation} , {name}= {result} .",
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
