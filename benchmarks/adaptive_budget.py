"""A threshold on predicted scores beside a fixed budget that holds as many tokens on average, on the embedded model.

    PYTHONPATH=. python benchmarks/adaptive_budget.py --out docs/results

The predictors that ship were trained on labels as they are (transform "linear"), so their scores have no scale of their
own: thresholds are quantiles of the scores of thinking tokens, over problems that are not held out. For each an arm
solves held-out problems greedily under that threshold and a large budget, and another under the fixed budget, of the
same window and retention ratio, that would hold as many tokens on average. Writes adaptive_budget.json (after each arm:
the same command continues) and adaptive_budget.md.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from resumed_rows import read_rows, shipped_weights, write_rows
from scipy.stats import binomtest

from dynts.cache.lengths import cache_lengths
from dynts.config import CompressionConfig, Sampling
from dynts.decode.arm import Arm
from dynts.engines.engine import Request
from dynts.engines.transformers import TransformersEngine
from dynts.evaluate.intervals import wilson
from dynts.methods import DynTS
from dynts.methods.dynts import predicted_scores
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import LABELS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import MAX_NEW_TOKENS, budget_for, is_solved
from dynts.tiny.task import HELD_OUT, VALIDATION, make_problem
from dynts.traces.problems import Problem

QUANTILES = (0.3, 0.5, 0.7)
CAP = CompressionConfig(budget_for(0.5), local_window=37, retention_ratio=0.8)
"""The largest budget. Short intervals between compactions, so that the cache can follow."""
LONG = 9
"""Definitions from which on a chain counts as long."""

Row = dict[str, Any]
"""What came of a problem: definitions, tokens read and written, mean and peak cached tokens, whether it is right."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--problems", type=int, default=300, help="held-out problems")
    parser.add_argument("--label", nargs="+", default=list(LABELS), choices=LABELS, help="whose predictors choose")
    parser.add_argument("--batch", type=int, default=50, help="problems at a time")
    arguments = parser.parse_args()
    settings = {"problems": arguments.problems, "weights_sha256": shipped_weights(), "torch": torch.__version__}
    path = arguments.out / "adaptive_budget.json"
    found = read_rows(path, settings)

    def rows(name: str, arm: Arm[str]) -> list[Row]:
        if name not in found:
            found[name] = {"schedule": arm.config.describe(), "rows": _solve(arm, arguments.problems, arguments.batch)}
            write_rows(path, settings, found)
        return found[name]["rows"]

    full = rows("full cache", Arm())
    pairs = []
    for label in arguments.label:
        thresholds = _quantiles(label)
        for quantile, threshold in zip(QUANTILES, thresholds, strict=True):
            arm = Arm(DynTS(), replace(CAP, threshold=threshold), label)
            name = f"{label}, above the {quantile:.0%} quantile"
            adaptive = rows(name, arm)
            config = _equal(adaptive)
            pairs.append((name, adaptive, config, rows(f"{label}, {config.describe()}", replace(arm, config=config))))
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, full, pairs)))


@torch.no_grad()
def _quantiles(label: str) -> list[float]:
    """Thresholds: of the scores of the tokens that the model writes before it closes its thinking, with all cached."""
    model, tokenizer = load_tiny_model()
    predictor, scores = load_tiny_predictor(label), []
    for done in _completions(Arm(), VALIDATION[:50], 50):
        end = done.generated_ids.index(tokenizer.convert_tokens_to_ids("</think>"))
        ids = torch.tensor([[*done.prompt_ids, *done.generated_ids[:end]]])
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[0, done.prompt_tokens :]
        scores.append(predicted_scores(predictor, hidden).float())
    return torch.cat(scores).quantile(torch.tensor(QUANTILES)).tolist()


def _completions(arm: Arm[str], seeds: Sequence[int], batch: int) -> Iterable[Any]:
    model, tokenizer = load_tiny_model()
    predictors = {label: load_tiny_predictor(label) for label in LABELS}
    sampling = Sampling(MAX_NEW_TOKENS, temperature=0)
    engine = TransformersEngine(model, tokenizer, sampling, [arm], predictors, batch=batch)
    problems = [(seed, make_problem(seed)) for seed in seeds]
    requests = [Request(Problem(str(seed), each.question, each.answer), 0, 0, arm) for seed, each in problems]
    return engine.generate(requests)


def _solve(arm: Arm[str], count: int, batch: int) -> list[Row]:
    """Of each problem, in their order."""
    found = {}
    for done in _completions(arm, HELD_OUT[:count], batch):
        problem = done.request.problem
        found[problem.id] = {
            "definitions": len(make_problem(int(problem.id)).definitions),
            "prompt": done.prompt_tokens,
            "generated": done.generated_tokens,
            "mean": done.lengths.mean,
            "peak": done.lengths.peak,
            "right": done.finished and is_solved(done.text, problem.answer),
        }
    return [found[str(seed)] for seed in HELD_OUT[:count]]


def _equal(rows: Sequence[Row]) -> CompressionConfig:
    """The budget, of the same window and ratio, under which texts as long as these hold as many tokens on average."""

    def held(budget: int) -> float:
        config = replace(CAP, budget=budget)
        return _mean({**row, "mean": cache_lengths(row["prompt"], row["generated"], config).mean} for row in rows)

    least = max(row["prompt"] for row in rows) + CAP.local_window + 2
    budgets = range(least, CAP.budget + 1)
    return replace(CAP, budget=min(budgets, key=lambda budget: abs(held(budget) - _mean(rows))))


def _mean(rows: Iterable[Row]) -> float:
    """Cached tokens of a decode step, over all steps: what a server holds for a sequence at any time."""
    steps = [(row["generated"] - 1, row["mean"]) for row in rows]
    return sum(count * mean for count, mean in steps) / sum(count for count, _ in steps)


def _page(
    settings: dict[str, Any], full: list[Row], pairs: Sequence[tuple[str, list[Row], CompressionConfig, list[Row]]]
) -> str:
    lines = [_line("full cache", full)]
    tests = []
    for name, adaptive, config, fixed in pairs:
        lines += [_line(name, adaptive), _line(f"{name.split(',')[0]}, budget {config.budget}", fixed)]
        tests.append([name, f"{config.budget}", *_compared(adaptive, fixed)])
    short = sum(row["definitions"] < LONG for row in full)
    return "\n".join(
        [
            "# Adaptive budget",
            "",
            f"Made by `benchmarks/adaptive_budget.py`: {settings['problems']} held-out problems, greedy decoding, "
            "`dynts` with the predictors that ship. An arm with a threshold "
            f"({CAP.describe()}, the budget being the cap) stands above the fixed budget, of the same window and "
            "ratio, that was reckoned to hold as many tokens in a decode step. Thresholds are quantiles of the scores "
            f"of thinking tokens of 50 other problems. Short chains: fewer than {LONG} definitions, {short} problems. "
            "Mean: cached tokens of a decode step, over all steps. Peak: the most of a problem, mean and highest.",
            "",
            markdown_table(
                [
                    "arm",
                    "Pass@1 (95% Wilson interval)",
                    "short",
                    "long",
                    "mean tokens",
                    "short",
                    "long",
                    "peak tokens",
                    "highest",
                ],
                lines,
            ),
            "Problems that only one of the two solves, and the exact McNemar test:",
            "",
            markdown_table(["threshold", "fixed budget", "only adaptive", "only fixed", "p"], tests),
            f"torch {settings['torch']}",
            "",
        ]
    )


def _line(name: str, rows: list[Row]) -> list[str]:
    short, long = ([row for row in rows if (row["definitions"] >= LONG) is wanted] for wanted in (False, True))
    found = wilson(sum(row["right"] for row in rows), len(rows))
    share = partial(_share, "right")
    return [
        name,
        f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})",
        *(f"{share(part):.1%}" for part in (short, long)),
        *(f"{_mean(part):.0f}" for part in (rows, short, long)),
        f"{_share('peak', rows):.0f}",
        f"{max(row['peak'] for row in rows)}",
    ]


def _share(name: str, rows: Sequence[Row]) -> float:
    return fmean(row[name] for row in rows)


def _compared(adaptive: Sequence[Row], fixed: Sequence[Row]) -> list[str]:
    pairs = [(ours["right"], theirs["right"]) for ours, theirs in zip(adaptive, fixed, strict=True)]
    ours, theirs = pairs.count((True, False)), pairs.count((False, True))
    p = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    return [f"{ours}", f"{theirs}", f"{p:.2g}"]


if __name__ == "__main__":
    main()
