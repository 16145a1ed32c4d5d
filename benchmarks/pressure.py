"""What both benchmarks of engines under memory pressure share: the questions, the pools, and the tables.

Every engine answers the same questions greedily, each in a process of its own, one after the other: held-out problems
of the embedded model to their ends, or questions from a file (JSON Lines, column "question") with a fixed number of
tokens each. The small pool holds a share of what the requests that may run together would need with the full cache.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from dynts.chat.options import DEFAULT_CHAT
from dynts.chat.prompts import encode_question
from dynts.config import CompressionConfig
from dynts.models import load_tokenizer
from dynts.store.files import write_text_whole
from dynts.store.jsonlines import read_objects
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import MEAN_LENGTH, budget_for, schedule
from dynts.tiny.task import HELD_OUT, make_problem

EMBEDDED_LENGTH = 1024
"""Most tokens of a sequence of the embedded model, prompt included."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every engine is asked.

    Args:
        model: folder of the model.
        predictors: folders of its predictors, by granularity.
        config: the budget of the engines that have one.
        prompts: token ids of each request.
        new_tokens: of each request; None lets it end by itself.
        mean_length: tokens of a sequence on average, prompt included.
        longest: most tokens of a sequence.
        together: most requests at a time.
    """

    model: str
    predictors: dict[str, str]
    config: CompressionConfig
    prompts: list[list[int]]
    new_tokens: int | None
    mean_length: int
    longest: int
    together: int


def options(description: str | None) -> argparse.ArgumentParser:
    """Return the options of both."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the embedded model by default")
    parser.add_argument("--predictor", help="of that model")
    parser.add_argument("--native", help="another of it, of a native label")
    parser.add_argument("--rounds", type=int, default=1, help="each in another order")
    parser.add_argument("--questions", type=Path, help="for that model")
    parser.add_argument("--new-tokens", type=int, default=600, help="of each request to that model")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25, help="of the full cache's demand, in the small pool")
    parser.add_argument("--budget-share", type=float, default=0.4, help="of the mean length")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def measure(
    arguments: argparse.Namespace, page: int, engines: Sequence[str], serve: Callable[..., dict[str, Any]]
) -> None:
    """Let engines answer the questions in a small and in a large pool, and print what each did.

    Args:
        arguments: of `options`.
        page: tokens of a page of the pool.
        engines: their kinds.
        serve: answers a task with so many pages, of a granularity or None for the full cache, on a kind of engine.
    """
    task = _embedded(arguments) if arguments.model is None else _of_file(arguments)
    demand = task.together * -(-task.mean_length // page)
    small = max(round(arguments.share * demand), task.longest // page + 2)
    rows = []
    arms = list(product(engines, (small, 4 * demand), (None, *task.predictors)))
    for number in range(arguments.rounds):
        for engine, pages, granularity in reversed(arms) if number % 2 else arms:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found = pool.submit(serve, task, pages, granularity, engine).result()
            rows.append({"engine": engine, "cache": granularity or "full", "slots": pages * page, **found})
            Console().print(rows[-1])
    record = {
        "requests": len(task.prompts),
        "together": task.together,
        "budget": task.config.budget,
        "mean_length": task.mean_length,
        "engines": rows,
    }
    write_text_whole(arguments.out, json.dumps(record, indent=1) + "\n")
    spent = [row.pop("milliseconds") for row in rows]
    for shown in (rows, [{**dict(list(row.items())[:3]), **times} for row, times in zip(rows, spent, strict=True)]):
        table = Table(*(name.replace("_", " ") for name in shown[0]))
        for row in shown:
            table.add_row(*(value if isinstance(value, str) else f"{value:.5g}" for value in row.values()))
        Console().print(table)


def _embedded(arguments: argparse.Namespace) -> Task:
    tokenizer = load_tokenizer(WEIGHTS)
    return Task(
        model=str(WEIGHTS),
        predictors={"shared": str(WEIGHTS / "answer"), **_native(arguments)},
        config=schedule(budget_for(arguments.budget_share)),
        prompts=[
            encode_question(tokenizer, make_problem(number).question, DEFAULT_CHAT).ids
            for number in HELD_OUT[: arguments.requests]
        ],
        new_tokens=None,
        mean_length=MEAN_LENGTH,
        longest=EMBEDDED_LENGTH,
        together=arguments.together,
    )


def _of_file(arguments: argparse.Namespace) -> Task:
    tokenizer = load_tokenizer(arguments.model)
    questions = [row["question"] for _, row in read_objects(arguments.questions)][: arguments.requests]
    prompts = [encode_question(tokenizer, question, DEFAULT_CHAT).ids for question in questions]
    mean_length = round(mean(map(len, prompts))) + arguments.new_tokens
    budget = round(arguments.budget_share * mean_length)
    return Task(
        model=arguments.model,
        predictors={"shared": arguments.predictor, **_native(arguments)},
        config=CompressionConfig(budget, round(0.3 * budget), 0.4),
        prompts=prompts,
        new_tokens=arguments.new_tokens,
        mean_length=mean_length,
        longest=max(map(len, prompts)) + arguments.new_tokens,
        together=arguments.together,
    )


def _native(arguments: argparse.Namespace) -> dict[str, str]:
    return {} if arguments.native is None else {"native": arguments.native}
