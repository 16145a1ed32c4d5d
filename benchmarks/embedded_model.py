"""Every method on the embedded model: 500 held-out problems at three budgets, and the retention table.

    python benchmarks/embedded_model.py --out docs/results

Writes embedded_model.json (raw numbers, after each run: the same command continues) and embedded_model.md (the tables).
One process a core, one thread each. The training tables come from the training.json that `recipes/embedded_model`
wrote: the shipped one, and those of other seeds if they lie there as embedded_model_seed1.json and so on.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from embedded_model_tables import results_page
from every_arm import PUBLISHED, arms_by_name
from resumed_rows import read_rows, shipped_weights, write_rows
from rich.progress import track

from dynts.analyze.retention import answers_by_share
from dynts.decode.arm import Arm
from dynts.demo.compare import Result, compare
from dynts.grading.compare import is_correct
from dynts.models import end_tokens
from dynts.report.prose import wrap_prose
from dynts.store.files import write_text_whole
from dynts.tiny import LABELS, WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, is_solved, schedule, solve
from dynts.tiny.task import HELD_OUT, ChainProblem, make_problem
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import Trace
from dynts.training.labels import label_trace

SHARES = (0.3, 0.4, 0.5)
PUBLISHED_SHARE = 0.4
RETAINED = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
ANSWER_TOKENS = 80
"""More than any right answer has."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--retention-problems", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    settings = {
        "problems": arguments.problems,
        "retention_problems": arguments.retention_problems,
        "weights_sha256": shipped_weights(),
        "torch": torch.__version__,
    }
    path = arguments.out / "embedded_model.json"
    rows = read_rows(path, settings)
    keys = [key for key in _arms() if key != "full"]
    own = [key for key in keys if not key.endswith(PUBLISHED)]
    tasks = {f"{key}, {PUBLISHED_SHARE:.0%}": partial(_solve, key, PUBLISHED_SHARE) for key in keys}
    tasks |= {f"{key}, {share:.0%}": partial(_solve, key, share) for share in SHARES for key in own}
    tasks |= {"full": partial(_solve, "full", 1.0), "no thinking": _solve_without_thinking}
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(task, arguments.problems): name for name, task in tasks.items() if name not in rows}
        if "retention" not in rows:
            running[pool.submit(_retention, arguments.retention_problems)] = "retention"
        for future in track(as_completed(running), total=len(running)):
            rows[running[future]] = future.result()
            write_rows(path, settings, dict(sorted(rows.items())))
    logs = [WEIGHTS / "training.json", *sorted(arguments.out.glob(f"{path.stem}_seed*.json"))]
    budgets = {share: budget_for(share) for share in SHARES}
    records = [json.loads(log.read_text()) for log in logs]
    write_text_whole(
        path.with_suffix(".md"), wrap_prose(results_page(settings, rows, keys, budgets, RETAINED, records))
    )


def _arms() -> dict[str, Arm]:
    return arms_by_name({label: load_tiny_predictor(label) for label in LABELS})


def _problems(count: int) -> list[ChainProblem]:
    return [make_problem(seed) for seed in HELD_OUT[:count]]


def _solve(key: str, share: float, count: int) -> dict[str, Any]:
    model, tokenizer = load_tiny_model()
    config = schedule(budget_for(share))
    result: Result = compare(model, tokenizer, _problems(count), _arms()[key], config)
    return {
        "correct": result.correct,
        "truncated": result.truncated,
        "mean_length": result.mean_length,
        "sequence_length": result.mean_sequence,
        "thinking_tokens": mean(solution.thinking_tokens for solution in result.solutions),
        "peak_tokens": result.peak_tokens,
    }


def _solve_without_thinking(count: int) -> dict[str, Any]:
    return {
        "correct": sum(solution.correct for solution in solve(*load_tiny_model(), _problems(count), thinking=False))
    }


@torch.no_grad()
def _retention(count: int) -> dict[str, Any]:
    """Right answers by choice and share of the thinking tokens, on the model's own right traces."""
    model, tokenizer = load_tiny_model()
    predictors = {label: load_tiny_predictor(label) for label in LABELS}
    problems = _problems(count)
    right: dict[str, list[int]] = {}
    traces = 0
    solutions = solve(model, tokenizer, problems)
    for index, (problem, solution) in enumerate(zip(problems, solutions, strict=True)):
        if not is_solved(solution.text, problem.answer):
            continue
        traces += 1
        tokens = tokenize_trace(tokenizer, Trace(str(index), problem.question, solution.text, problem.answer))
        labelled = label_trace(model, tokens, LABELS)
        length = len(labelled.hidden)
        answer = labelled.labels["answer"]
        scores = {
            **{f"true {label} label, top": labelled.labels[label] for label in LABELS},
            **{f"predicted {label} label, top": predictors[label](labelled.hidden) for label in LABELS},
            "most recent": torch.arange(length),
            "random": torch.rand(length, generator=torch.Generator().manual_seed(index)),
            "true answer label, bottom": -answer,
        }
        answers = answers_by_share(
            model, tokens, scores, RETAINED, end_tokens=end_tokens(model), max_new_tokens=ANSWER_TOKENS
        )
        for name, found in answers.items():
            before = right.get(name, [0] * len(RETAINED))
            correct = (bool(is_correct(tokenizer.decode(ids), problem.answer)) for ids in found)
            right[name] = [old + new for old, new in zip(before, correct, strict=True)]
    return {"traces": traces, "right": right}


if __name__ == "__main__":
    main()
