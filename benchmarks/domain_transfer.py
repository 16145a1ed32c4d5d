"""What training on one kind of trace does to another: a predictor trained on each domain and on the mix, tested on
each.

    PYTHONPATH=. python benchmarks/domain_transfer.py --work domains --out docs/results
    PYTHONPATH=. python benchmarks/domain_transfer.py --shards gsm8k --shards code --out results --transform rank ...

Without --shards, the domains are short and long chains of the embedded model's task: it solves problems of 4 to 6 and
of 10 to 12 definitions and labels its right traces, in --work (the same command continues). With --shards, each folder
written by `dynts label` is a domain; all must be of one model. Every domain gives as many traces as the smallest one;
"mix, same size" takes an equal share of that number from each. Questions are held out across all domains. Token
identity, trained on the same traces, stands beside, because without it a figure means little. Writes
domain_transfer.json (raw numbers, after each
training: the same command continues) and domain_transfer.md (the tables).
"""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from resumed_rows import read_rows, write_rows

from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS, load_tiny_model
from dynts.tiny.solve import solve
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.training.dataset import FOLDER_COLUMN, Example, Tokens, load_examples, split_by_question
from dynts.training.fit import evaluate, fit
from dynts.training.labelling import label_traces
from dynts.training.metrics import average, baseline_metrics
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig
from recipes.embedded_model.solution import write_traces

CHAINS = {"short": range(4, 7), "long": range(10, 13)}
"""Definitions of a problem."""
FIGURES = ("kendall_tau", "top20_overlap")
PREDICTORS = ("predictor", "token_identity")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--work", type=Path, help="folder for the traces and shards of the embedded model")
    parser.add_argument("--shards", type=Path, action="append", help="a domain of your own; give several")
    parser.add_argument(
        "--traces", type=int, default=500, help="problems of each domain that the embedded model solves"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--label", default="answer")
    parser.add_argument("--transform", default="linear")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-traces", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    if arguments.shards is None and arguments.work is None:
        parser.error("--work or --shards is needed")
    config = TrainConfig(
        label=arguments.label,
        transform=arguments.transform,
        epochs=arguments.epochs,
        batch_traces=arguments.batch_traces,
        learning_rate=arguments.learning_rate,
    )
    if arguments.shards is None:
        folders = [_make_domain(arguments.work, name, arguments.traces) for name in CHAINS]
    else:
        folders = [ShardFolder.open(path) for path in arguments.shards]
    train, tests = _domains(load_examples(folders, config.label, config.transform, FOLDER_COLUMN), config)
    path = arguments.out / "domain_transfer.json"
    settings = {
        "config": config.settings(),
        "domains": {folder.path.name: folder.manifest["settings"]["traces_sha256"] for folder in folders},
        "traces": {name: [len(found), len(tests[name])] for name, found in train.items()},
        "model": folders[0].manifest["settings"]["model"],
        "torch": torch.__version__,
    }
    rows = read_rows(path, settings)
    for seed in range(arguments.seeds):
        for name, examples in _training_sets(train):
            key = f"{name}, seed {seed}"
            if key not in rows:
                rows[key] = _measure(examples, tests, replace(config, seed=seed))
                write_rows(path, settings, rows)
                print(key, rows[key], flush=True)
    sets = dict(_training_sets(train))
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, rows, sets, tests, arguments.seeds)))


def _make_domain(work: Path, name: str, count: int) -> ShardFolder:
    """Traces and labels of the embedded model on problems of one length."""
    work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_tiny_model()
    traces = work / f"{name}-{count}-{_weights()[:8]}.jsonl"
    if not traces.exists():
        first = list(CHAINS).index(name) * count
        problems = [make_problem(seed, CHAINS[name]) for seed in PREDICTOR[first : first + count]]
        write_traces(traces, problems, solve(model, tokenizer, problems))
    return label_traces(model, tokenizer, traces, work / f"{traces.stem}-shards" / name, name="dynts-tiny")


def _weights() -> str:
    return hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()


Domains = dict[str, list[Example]]


def _domains(examples: list[Example], config: TrainConfig) -> tuple[Domains, Domains]:
    """Training and held-out traces of each domain; as many for training in each."""
    train, held_out = split_by_question(examples, config.held_out, config.seed)
    names = list(dict.fromkeys(example.group for example in examples))
    parts = [{name: [item for item in side if item.group == name] for name in names} for side in (train, held_out)]
    if any(not found for side in parts for found in side.values()):
        raise SystemExit("a domain has no training or no held-out trace: label more traces")
    least = min(map(len, parts[0].values()))
    return {name: found[:least] for name, found in parts[0].items()}, parts[1]


def _training_sets(train: Domains) -> Iterator[tuple[str, list[Example]]]:
    yield from train.items()
    share = len(next(iter(train.values()))) // len(train)
    yield "mix, same size", [example for examples in train.values() for example in examples[:share]]
    yield "mix", [example for examples in train.values() for example in examples]


def _measure(examples: list[Example], tests: Domains, config: TrainConfig) -> dict[str, Any]:
    """Metrics by domain and predictor."""
    predictor = fit(examples, config)
    found = {}
    for name, held_out in tests.items():
        trivial = baseline_metrics(_tokens(examples), _tokens(held_out), config.seed)
        rows = {"predictor": evaluate(predictor, held_out), **trivial}
        found[name] = {kind: average(values) for kind, values in rows.items()}
    return found


def _tokens(examples: list[Example]) -> Iterator[Tokens]:
    return (example.read() for example in examples)


def _page(settings: dict[str, Any], rows: dict[str, Any], train: Domains, tests: Domains, seeds: int) -> str:
    lines = [
        "# Training on one domain, testing on another",
        "",
        f"Made by `benchmarks/domain_transfer.py`; model {settings['model']}. Rows: trained on. Columns: tested on. "
        "Held-out "
        f"Kendall tau / top-20% overlap, mean of {seeds} seeds of weights and order (smallest to largest tau).",
    ]
    for kind in PREDICTORS:
        cells = []
        for name, examples in train.items():
            figures = [_cell([rows[f"{name}, seed {seed}"][test][kind] for seed in range(seeds)]) for test in tests]
            cells.append([name, f"{len(examples)}", f"{sum(example.known for example in examples)}", *figures])
        columns = ["trained on", "traces", "tokens", *(f"{name} ({len(found)})" for name, found in tests.items())]
        lines += ["", f"## {kind.replace('_', ' ').capitalize()}", "", markdown_table(columns, cells).rstrip()]
    recipe = ", ".join(f"{name} {value}" for name, value in settings["config"].items())
    return "\n".join([*lines, "", f"{recipe}, torch {settings['torch']}", ""])


def _cell(found: list[dict[str, float]]) -> str:
    tau, overlap = (mean(values[name] for values in found) for name in FIGURES)
    taus = [values["kendall_tau"] for values in found]
    return f"{tau:.3f} / {overlap:.3f} ({min(taus):.3f}-{max(taus):.3f})"


if __name__ == "__main__":
    main()
