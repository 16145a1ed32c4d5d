"""From problems to predictors on the embedded model: collect, grade, label, train, and compare with the shipped
predictors.

    python benchmarks/collect_to_predictor.py --work FOLDER --out docs/results

Every stage is a `dynts` command in a process of its own, whose wall time and peak memory are measured. Interrupted, the
same command continues: stages that are done are not run again, and of one that was interrupted only the last part is
counted. Both pairs of predictors are then measured on traces of held-out problems that neither has seen, and with their
evictions. Writes collect_to_predictor.json and collect_to_predictor.md.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from dynts.collect.status import read_status
from dynts.decode.compress import compress
from dynts.predictor.model import ImportancePredictor
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import LABELS, WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import MAX_NEW_TOKENS, budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, PREDICTOR, ChainProblem, make_problem
from dynts.training.metrics import trace_metrics
from dynts.training.shards import ShardFolder
from dynts.training.transforms import transform_labels

RECIPE = "--transform linear --epochs 25 --batch-traces 2 --learning-rate 3e-3 --device cpu"
"""How the shipped predictors were trained."""
FUTURE_WINDOW = 75
METRICS = ("kendall_tau", "spearman", "top20_overlap", "top30_overlap")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for traces, shards and predictors")
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--batch", type=int, default=100)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    settings = {"traces": arguments.traces, "held_out": arguments.held_out, "batch": arguments.batch}
    record = _read(work / "record.json", settings)

    held_out = [make_problem(seed) for seed in HELD_OUT[: arguments.held_out]]
    _write_problems(work / "problems.jsonl", [make_problem(seed) for seed in PREDICTOR[: arguments.traces]])
    _write_problems(work / "held_out.jsonl", held_out)
    model = f"--model {shlex.quote(str(WEIGHTS))} --device cpu"
    sampling = f"--max-new-tokens {MAX_NEW_TOKENS} --batch {arguments.batch}"
    window = f"--future-window {FUTURE_WINDOW}"
    stages = {
        "collect": f"collect {model} {sampling} --dataset problems.jsonl --out traces",
        "label": f"label {model} {window} --traces traces --out shards",
        **{f"train, {label}": f"train --shards shards --label {label} --out {label} {RECIPE}" for label in LABELS},
        "collect held-out": f"collect {model} {sampling} --dataset held_out.jsonl --out held_out_traces",
        "label held-out": f"label {model} {window} --traces held_out_traces --out held_out_shards",
    }
    for name, command in stages.items():
        if name not in record["stages"]:
            record["stages"][name] = _stage(command, work)
            print(name, record["stages"][name], flush=True)
            _save(work / "record.json", record)

    record["collected"] = read_status(work / "traces").tally.figures()
    record["labelled"] = len(ShardFolder.open(work / "shards").indices)
    folder = ShardFolder.open(work / "held_out_shards")
    record["held_out_traces"] = len(folder.indices)
    predictors: dict[str, Callable[[str], ImportancePredictor]] = {
        "shipped": load_tiny_predictor,
        "collected": lambda label: ImportancePredictor.from_pretrained(work / label),
    }
    for origin, load in predictors.items():
        for label in LABELS:
            name = f"{label}, {origin}"
            if name not in record["quality"]:
                predictor = load(label)
                record["quality"][name] = {
                    **_metrics(predictor, folder, label),
                    "pass@1": _accuracy(predictor, held_out, arguments.batch),
                }
                print(name, record["quality"][name], flush=True)
                _save(work / "record.json", record)
    _save(arguments.out / "collect_to_predictor.json", record)
    write_text_whole(arguments.out / "collect_to_predictor.md", wrap_prose(_page(record, stages)))


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["settings"] != settings:
            raise SystemExit(f"{path} was made with {found['settings']}, not {settings}: choose another --work")
        return found
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    return {"settings": settings, "machine": machine, "stages": {}, "quality": {}}


def _save(path: Path, record: dict[str, Any]) -> None:
    write_text_whole(path, json.dumps(record, indent=1) + "\n")


def _write_problems(path: Path, problems: Sequence[ChainProblem]) -> None:
    rows = [json.dumps({"question": problem.question, "answer": problem.answer}) for problem in problems]
    write_text_whole(path, "\n".join(rows) + "\n")


def _stage(command: str, work: Path) -> dict[str, float]:
    """Run a dynts command in the work folder; seconds, seconds of processor time and peak bytes of its process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dynts", *shlex.split(command)], cwd=work)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"dynts {command} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - started,
        # also right where other work shares the machine
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * unit,
    }


@torch.no_grad()
def _metrics(predictor: ImportancePredictor, folder: ShardFolder, label: str) -> dict[str, float]:
    """Averaged over traces; all depend on order alone, so the transform does not matter."""
    rows = []
    for index in folder.indices:
        shard = folder.read(index)
        targets = transform_labels(shard.labels[label].numpy(), "rank")[shard.rows.numpy()]
        rows.append(trace_metrics(predictor(shard.hidden).numpy(), targets))
    return {name: mean(row[name] for row in rows) for name in METRICS}


def _accuracy(predictor: ImportancePredictor, problems: Sequence[ChainProblem], batch: int) -> float:
    """Of the model at a budget of 40% of the mean length."""
    model, tokenizer = load_tiny_model()
    with compress(model, "dynts", schedule(budget_for(0.4)), predictor, tokenizer=tokenizer):
        return mean(solution.correct for solution in solve(model, tokenizer, problems, batch=batch))


def _wrapped(command: str) -> str:
    """Break a long command before its options."""
    words = re.sub(r" (?!--)", "\0", command)
    return " \\\n  ".join(textwrap.wrap(words, 116, break_on_hyphens=False)).replace("\0", " ")


def _page(record: dict[str, Any], stages: dict[str, str]) -> str:
    settings, collected = record["settings"], record["collected"]
    times = [
        (
            name,
            f"{stage['seconds'] / 60:.1f}",
            f"{stage['processor_seconds'] / 60:.1f}",
            f"{stage['peak_bytes'] / 2**20:.0f}",
        )
        for name, stage in record["stages"].items()
    ]
    quality = [
        (name, *(f"{values[metric]:.3f}" for metric in METRICS), f"{values['pass@1']:.3f}")
        for name, values in record["quality"].items()
    ]
    commands = "\n".join(_wrapped(f"dynts {command}".replace(str(WEIGHTS), "MODEL")) for command in stages.values())
    return f"""# From problems to predictors on the embedded model

Made by `python benchmarks/collect_to_predictor.py --work FOLDER --out docs/results --traces {settings["traces"]} \
--held-out {settings["held_out"]} --batch {settings["batch"]}` on {record["machine"]["cpus"]} CPU cores, from nothing
but the embedded model and {settings["traces"]} problems. Raw numbers:
[collect_to_predictor.json](collect_to_predictor.json).

{collected["done"]} traces were collected, {collected["correct"]} correct; {record["labelled"]} labelled. The stages,
each a command in a process of its own:

```bash
{commands}
```

{markdown_table(("stage", "minutes", "processor minutes", "peak MiB"), times)}
Minutes grow with what else runs on the machine, processor minutes (of both cores) do not.

Both pairs of predictors on {record["held_out_traces"]} traces of held-out problems that neither has seen, and Pass@1
on the
{settings["held_out"]} held-out problems under DynTS at 40% of the mean length:

{markdown_table(("predictor", "Kendall tau", "Spearman", "top-20% overlap", "top-30% overlap", "Pass@1"), quality)}"""


if __name__ == "__main__":
    main()
