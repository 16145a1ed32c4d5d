"""On what kind of work a trained predictor beats random sets: the embedded model's chains, looking back near and far.

    python benchmarks/lookback.py --out docs/results

Each problem has as many definitions. What differs is its reach: operands are drawn from the last `reach` variables, and
what is asked is among the last ones too; with the widest reach any earlier result may be needed again at any time, as
in the task that the model was trained on. Where little reach is enough, the local window holds what is needed; the
wider it is, the more depends on which tokens are kept. Writes lookback.json (after each run: the same command
continues) and lookback.md.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from resumed_rows import read_rows, shipped_weights, write_rows
from rich.progress import track

from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.demo.compare import compare
from dynts.evaluate.intervals import wilson
from dynts.methods import H2O, DynTS, QuestionWindow, Random
from dynts.models import load_model
from dynts.predictor.model import ImportancePredictor
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import schedule
from dynts.tiny.task import (
    GIVEN,
    HELD_OUT,
    OPERATORS,
    QUERIES,
    STEPS,
    VARIABLES,
    ChainProblem,
    Definition,
    compute,
    write_answer,
    write_question,
)

FULL = "full"
DEFINITIONS = STEPS[-1]
REACHES = (2, 5, len(VARIABLES))
SHARE = 0.3
"""The budget, as a share of the mean length with the full cache."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--problems", type=int, default=100, help="of each reach")
    arguments = parser.parse_args()
    model, tokenizer = load_model(WEIGHTS)
    settings = {"problems": arguments.problems, "weights_sha256": shipped_weights(), "torch": torch.__version__}
    path = arguments.out / "lookback.json"
    rows = read_rows(path, settings)
    for reach in track(REACHES, "reach"):
        problems = [bounded_problem(seed, reach) for seed in HELD_OUT[: arguments.problems]]
        distances = [distance for problem in problems for distance in looked_back(problem)]
        for name, arm in _arms().items():
            key = f"{reach}, {name}"
            if key not in rows:
                whole = rows.get(f"{reach}, {FULL}")
                config = schedule(round(SHARE * whole["mean"])) if whole else CompressionConfig()
                result = compare(model, tokenizer, problems, arm, config)
                rows[key] = {
                    "correct": result.correct,
                    "mean": result.mean_sequence,
                    "truncated": result.truncated,
                    "steps_back": mean(distances),
                    "budget": config.budget,
                }
                write_rows(path, settings, rows)
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, rows)))


def bounded_problem(seed: int, reach: int) -> ChainProblem:
    """A problem of `DEFINITIONS` definitions whose operands are among the last `reach` variables before each.

    Args:
        seed: of the problem.
        reach: at least 2.
    """
    rng = random.Random(seed)
    given = rng.choice(GIVEN)
    names = VARIABLES[: given + DEFINITIONS]
    values = {name: rng.randrange(10) for name in names[:given]}
    definitions: dict[str, Definition] = {}
    facts = [f"{name}= {value}" for name, value in values.items()]
    for index in range(given, len(names)):
        left, right = rng.sample(names[max(0, index - reach) : index], 2)
        operator = rng.choice(OPERATORS)
        definitions[names[index]] = left, operator, right
        values[names[index]] = compute(values[left], operator, values[right])
        facts.append(f"{names[index]}:= {left} {operator} {right}")
    rng.shuffle(facts)
    asked = rng.sample(list(definitions)[-max(reach, QUERIES) :], QUERIES)
    return ChainProblem(write_question(facts, asked), write_answer(asked, values), tuple(asked), definitions, values)


def looked_back(problem: ChainProblem) -> Iterator[int]:
    """How many results back each operand of a problem lies; those that are given lie in the question and do not count.

    Args:
        problem: of this task.
    """
    order = {name: place for place, name in enumerate(problem.definitions)}
    for name, (left, _, right) in problem.definitions.items():
        yield from (order[name] - order[operand] for operand in (left, right) if operand in order)


def _arms() -> dict[str, Arm[ImportancePredictor]]:
    arms: dict[str, Arm[ImportancePredictor]] = {
        FULL: Arm(),
        "question-window": Arm(QuestionWindow()),
        "random": Arm(Random(granularity="shared")),
        "random, native": Arm(Random(granularity="native")),
        "h2o, native": Arm(H2O(granularity="native", protect_question=True)),
    }
    for label in ("answer", "future"):
        predictor = ImportancePredictor.from_pretrained(WEIGHTS / label)
        arms[f"dynts, {label} label"] = Arm(DynTS(), predictor=predictor)
    return arms


def _page(settings: dict[str, Any], rows: dict[str, Any]) -> str:
    count = settings["problems"]

    def cell(reach: int, name: str) -> str:
        found = wilson(rows[f"{reach}, {name}"]["correct"], count)
        return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"

    whole = {reach: rows[f"{reach}, {FULL}"] for reach in REACHES}
    shown = [f"{row['steps_back']:.1f} results back" for row in whole.values()]
    lengths = ", ".join(f"{row['mean']:.0f}" for row in whole.values())
    return "\n".join(
        [
            "# How far back a chain must look",
            "",
            f"Made by `benchmarks/lookback.py`; the embedded model, {count} problems of {DEFINITIONS} definitions for "
            "each reach, greedy decoding, Pass@1 (95% Wilson interval). The operands of a definition lie so many "
            f"results back, on average. Budgets are {SHARE:.0%} of the mean length with the full cache ({lengths} "
            "tokens); of the room beside the question 40% are the local window and 40% selected tokens. All methods "
            "keep the question.",
            "",
            markdown_table(["method", *shown], [[name, *(cell(reach, name) for reach in REACHES)] for name in _arms()]),
            f"torch {settings['torch']}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
