"""Which order of problems keeps the tail of a run short, by simulation.

    python benchmarks/order_of_problems.py TRACES --gguf TOKENIZER.gguf --questions MATH500.jsonl

In continuous batching a row whose answer has ended takes the next problem, so that only the end of a run has dead
rows. Each row writes one token a step; prompts cost nothing here. Two sets of lengths: those of real traces, as their
model wrote them, and a heavy tail (log-normal, median 2,000, sigma 1, cut at 16,384) on the questions of a benchmark,
drawn with the rank correlation of prompt and answer that the traces have. The tables give steps over the least that
there can be (tokens / rows), and the share of rows' steps that are dead, as mean and worst over seeds: seeds shuffle,
choose three of five traces, and draw the heavy tail.

"static" is what a batch that runs until its longest row ends makes of the file's order. "longest answer" knows what
nobody knows beforehand. "shuffled" sorts by a hash of seed and id, as samples are seeded: it stays the same when a run
goes on after an interruption, and when problems are added.
"""

import argparse
import hashlib
import heapq
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist, mean
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from dynts.config import ModelSource
from dynts.models.load import load_tokenizer
from dynts.report.tables import markdown_table
from dynts.traces.traces import read_traces


class Lengths(NamedTuple):
    """A problem: its place, and the tokens of its prompt and of its answer."""

    place: int
    prompt: int
    answer: int


Order = Callable[[Lengths, int], Any]
"""By what problems are sorted, given one and the seed of the run."""
Simulate = Callable[[Sequence[int], int], int]
"""Counts the steps of a run, given the lengths of its answers in order, and its rows."""

MEDIAN, SIGMA, LIMIT = 2_000, 1.0, 16_384


def _hash(problem: Lengths, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {problem.place}".encode()).digest()


ORDERS: dict[str, Order] = {
    "file": lambda problem, seed: problem.place,
    "shuffled": _hash,
    "longest prompt first": lambda problem, seed: -problem.prompt,
    "shortest prompt first": lambda problem, seed: problem.prompt,
    "longest answer first (oracle)": lambda problem, seed: -problem.answer,
}


def continuous(lengths: Sequence[int], rows: int) -> int:
    """Count the steps of a run in which each row that ends takes the next problem.

    Args:
        lengths: tokens of each answer, in order.
        rows: of the batch.
    """
    ends = [0] * rows
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def static(lengths: Sequence[int], rows: int) -> int:
    """Count the steps of a run of batches, each of which runs until its longest row ends; see `continuous`."""
    return sum(max(lengths[start : start + rows]) for start in range(0, len(lengths), rows))


def heavy_tail(prompts: Sequence[int], correlation: float, samples: int, seed: int) -> list[Lengths]:
    """Draw lengths of answers.

    Args:
        prompts: tokens of each.
        correlation: of prompts and answers, as ranks.
        samples: of each prompt, one after the other, and as different as those of different prompts.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    repeated = np.repeat(prompts, samples)
    ranks = np.argsort(np.argsort(repeated + generator.random(len(repeated))))
    of_prompts = np.array([NormalDist().inv_cdf((rank + 0.5) / len(repeated)) for rank in ranks])
    linear = 2 * np.sin(np.pi * correlation / 6)  # two normal variables of this correlation have that one of ranks
    normal = linear * of_prompts + np.sqrt(1 - linear**2) * generator.standard_normal(len(repeated))
    answers = np.clip(MEDIAN * np.exp(SIGMA * normal), 1, LIMIT).astype(int)
    return [Lengths(place, *pair) for place, pair in enumerate(zip(repeated.tolist(), answers.tolist(), strict=True))]


def some(traces: Sequence[Lengths], seed: int) -> list[Lengths]:
    """Draw three of five traces, in their order.

    Args:
        traces: all that there are.
        seed: of the draw.
    """
    return sorted(random.Random(seed).sample(traces, len(traces) * 3 // 5))


def cell(draw: Callable[[int], list[Lengths]], key: Order, simulate: Simulate, rows: int, seeds: int) -> str:
    """Return what an order makes of some problems: steps over the least, and dead rows.

    Args:
        draw: gives the problems of a seed.
        key: the order.
        simulate: counts the steps.
        rows: of the batch.
        seeds: how many runs.
    """
    over = []
    for seed in range(seeds):
        keyed = sorted((key(problem, seed), problem.place, problem.answer) for problem in draw(seed))
        lengths = [answer for _, _, answer in keyed]
        over.append(simulate(lengths, rows) * rows / sum(lengths))
    dead = [1 - 1 / ratio for ratio in over]
    return f"{mean(over):.3f}; {mean(dead):.1%} ({max(dead):.1%})"


def main() -> None:
    """Parse arguments, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, help="JSON Lines with question and response")
    parser.add_argument("--gguf", type=Path, required=True, help="file with the tokenizer")
    parser.add_argument("--questions", type=Path, required=True, help="JSON Lines with question")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 20])
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(ModelSource(str(arguments.gguf.parent), gguf_file=arguments.gguf.name))

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    real = [
        Lengths(place, tokens(trace.question), tokens(trace.response))
        for place, trace in enumerate(read_traces(arguments.traces))
    ]
    answers = [problem.answer for problem in real]
    correlation = float(spearmanr([problem.prompt for problem in real], answers).statistic)
    with arguments.questions.open(encoding="utf-8") as lines:
        prompts = [tokens(json.loads(line)["question"]) for line in lines]
    quantiles = ", ".join(f"{round(value):,}" for value in np.quantile(answers, (0.1, 0.5, 0.9, 1)))
    print(f"{len(real)} traces: tokens at 10, 50, 90 and 100%: {quantiles}; Spearman {correlation:.2f} with the prompt")
    draws: dict[str, Callable[[int], list[Lengths]]] = {
        f"{len(real) * 3 // 5} traces": partial(some, real),
        f"heavy tail, {len(prompts)}": partial(heavy_tail, prompts, correlation, 1),
        "its prompts say nothing": partial(heavy_tail, prompts, 0.0, 1),
        "5 samples": partial(heavy_tail, prompts, correlation, 5),
    }
    runs = {"static, file": (ORDERS["file"], static)} | {name: (key, continuous) for name, key in ORDERS.items()}
    for rows in arguments.rows:
        lines = [
            [name, *(cell(draw, key, simulate, rows, arguments.seeds) for draw in draws.values())]
            for name, (key, simulate) in runs.items()
        ]
        print(f"\n{rows} rows\n\n{markdown_table(['order', *draws], lines)}")


if __name__ == "__main__":
    main()
