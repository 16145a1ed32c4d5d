"""One set of tokens for all heads against a set for each, question and answer kept or not, as trained predictors
choose.

    PYTHONPATH=. python benchmarks/native_predictor.py --work FOLDER --out docs/results --model seed2=FOLDER

Each model solves problems, and its right traces are labelled both ways; a predictor is trained for every label as the
embedded ones are, and tried on held-out problems, greedily, beside the best method without a predictor. The embedded
model comes first; --model adds others that `recipes/embedded_model` made. A predictor of a native label can serve both
ways: its mean over layers and heads chooses one set for all. For dynts-all, predictors are trained on question and
answer tokens too. Writes native_predictor.json (after each run: the same command continues) and native_predictor.md.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from resumed_rows import read_rows, shipped_weights, write_rows
from rich.progress import track

from dynts.collect.plan import model_files
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm, make_arms
from dynts.demo.compare import compare
from dynts.evaluate.intervals import wilson
from dynts.methods import H2O, DynTSAll
from dynts.models import load_model
from dynts.predictor.label import LABELS
from dynts.predictor.model import ImportancePredictor
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, PREDICTOR, make_problem
from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from dynts.training.train import save_predictor, train_predictor
from recipes.embedded_model.build import FUTURE_WINDOW, PREDICTOR_PROBLEMS, TRANSFORM, predictor_recipe
from recipes.embedded_model.solution import write_traces

EMBEDDED = "embedded"
ALL_TOKENS = ("future", "future-native")
"""Labels of which a second predictor is trained, on question and answer tokens too."""
ALL_TOKENS_WINDOW = 32
"""The local window, in tokens, that its future label leaves out: these predictors are tried at smaller budgets too."""
CONFIGS = {
    "20%": CompressionConfig(budget_for(0.2), local_window=37, retention_ratio=0.6),
    # the local window that serves one set of tokens best at this budget, see embedded_eval
    "30%": CompressionConfig(budget_for(0.3), local_window=75, retention_ratio=0.6),
    "40%": schedule(budget_for(0.4)),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for traces, shards and predictors")
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="another model; repeatable")
    parser.add_argument("--traces", type=int, default=PREDICTOR_PROBLEMS, help="problems that a model is to solve")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    models = {EMBEDDED: str(WEIGHTS), **dict(text.split("=", 1) for text in arguments.model)}
    settings = {
        "traces": arguments.traces,
        "problems": arguments.problems,
        "weights_sha256": shipped_weights(),
        "models": {name: model_files(folder) for name, folder in models.items() if name != EMBEDDED},
        "torch": torch.__version__,
    }
    path = arguments.out / "native_predictor.json"
    rows = read_rows(path, settings)
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        prepared = [
            pool.submit(_prepare, folder, arguments.work / name, arguments.traces) for name, folder in models.items()
        ]
        for done in track(as_completed(prepared), "traces, labels, predictors", total=len(prepared)):
            done.result()
        tasks = {
            f"{name}, {share}, {method}": (folder, arguments.work / name, method, config)
            for name, folder in models.items()
            for share, config in CONFIGS.items()
            for method in _arms(arguments.work / name)
        }
        running = {
            pool.submit(_solve, *task, arguments.problems): key for key, task in tasks.items() if key not in rows
        }
        for future in track(as_completed(running), "held-out problems", total=len(running)):
            rows[running[future]] = future.result()
            write_rows(path, settings, dict(sorted(rows.items())))
    metrics = {name: _metrics(arguments.work / name) for name in models}
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, rows, list(models), metrics)))


def _prepare(source: str, work: Path, traces: int) -> None:
    """Make what is not there yet: traces, shards and predictors."""
    model, tokenizer = load_model(source)
    written = work / "traces.jsonl"
    if not written.exists():
        work.mkdir(parents=True, exist_ok=True)
        problems = [make_problem(seed) for seed in PREDICTOR[:traces]]
        write_traces(written, problems, solve(model, tokenizer, problems))
    labels = tuple(LABELS)
    shards = label_traces(
        model, tokenizer, written, work / "shards", name=work.name, labels=labels, future_window=FUTURE_WINDOW
    )
    _train(shards, {label: work / label for label in labels})
    folder = work / "shards-all"
    shards = label_traces(
        model,
        tokenizer,
        written,
        folder,
        name=work.name,
        labels=ALL_TOKENS,
        future_window=ALL_TOKENS_WINDOW,
        all_tokens=True,
    )
    _train(shards, {label: work / f"{label}-all" for label in ALL_TOKENS})


def _train(shards: ShardFolder, predictors: dict[str, Path]) -> None:
    """A predictor for each label, where it is not there yet."""
    for label, out in predictors.items():
        if not out.exists():
            trained = train_predictor(shards, predictor_recipe(label, TRANSFORM, seed=0))
            save_predictor(trained.predictor, out)


def _arms(work: Path) -> dict[str, Arm]:
    """dynts by every predictor, shared and native, dynts-all by those that serve it, and the best method without
    one."""
    found = {}
    for name, folders in {
        "dynts": {label: work / label for label in LABELS},
        "dynts-all": {label: work / f"{label}-all" for label in ALL_TOKENS},
    }.items():
        predictors = {label: ImportancePredictor.from_pretrained(folder) for label, folder in folders.items()}
        configs = {label: predictor.config for label, predictor in predictors.items()}
        for made in make_arms([name], ["shared", "native"], configs, protect_question=False):
            arm = replace(made, predictor=predictors[str(made.predictor)])
            found[arm.name()] = arm
            if isinstance(arm.method, DynTSAll) and arm.method.granularity == "native":
                kept = replace(arm, method=replace(arm.method, protect_question=True))
                found[kept.name()] = kept
    found["h2o, native"] = Arm(H2O(granularity="native", protect_question=True))
    return found


def _solve(source: str, work: Path, method: str, config: CompressionConfig, count: int) -> dict[str, Any]:
    model, tokenizer = load_model(source)
    problems = [make_problem(seed) for seed in HELD_OUT[:count]]
    result = compare(model, tokenizer, problems, _arms(work)[method], config)
    return {"correct": result.correct, "truncated": result.truncated, "mean_length": result.mean_length}


def _metrics(work: Path) -> dict[str, dict[str, float]]:
    """Of the held-out traces, by label."""
    return {label: ImportancePredictor.from_pretrained(work / label).config.metrics["predictor"] for label in LABELS}


def _page(
    settings: dict[str, Any], rows: dict[str, Any], models: list[str], metrics: dict[str, dict[str, dict[str, float]]]
) -> str:
    count = settings["problems"]
    columns = [(name, share) for name in models for share in CONFIGS]
    methods = [key.split(", ", 2)[2] for key in rows if key.startswith(f"{models[0]}, {next(iter(CONFIGS))}, ")]

    def cell(name: str, share: str, method: str) -> str:
        correct = rows[f"{name}, {share}, {method}"]["correct"]
        found = wilson(correct, count)
        return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"

    described = "; ".join(f"{share}: {config.describe()}" for share, config in CONFIGS.items())
    return "\n".join(
        [
            "# A set of tokens for each layer and KV head",
            "",
            f"Made by `benchmarks/native_predictor.py`; {count} held-out problems, greedy decoding, predictors trained "
            f"on the right ones of {settings['traces']} solved problems. Pass@1 (95% Wilson interval). {described}.",
            "",
            markdown_table(
                ["method", *(f"{name}, {share}" for name, share in columns)],
                [[method, *(cell(name, share, method) for name, share in columns)] for method in methods],
            ),
            "## Predictors, on held-out traces",
            "",
            "Those of native labels are averaged over layers and heads.",
            "",
            markdown_table(
                ["label", *(f"{name}: {figure}" for name in models for figure in ("Kendall tau", "top-30% overlap"))],
                [
                    [
                        label,
                        *(
                            f"{metrics[name][label][figure]:.3f}"
                            for name in models
                            for figure in ("kendall_tau", "top30_overlap")
                        ),
                    ]
                    for label in LABELS
                ],
            ),
            f"torch {settings['torch']}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
