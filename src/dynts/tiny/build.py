"""Make the embedded model and its predictors from nothing: `python -m dynts.tiny.build --out FOLDER`.

Pretrains the model, lets it solve problems of their own seed range, labels its correct traces with its own attention, trains
a predictor for each label, and measures all of it on held-out problems. `training.json` records what happened.

One thread, so that the weights do not depend on the number of cores.
"""

import argparse
import hashlib
import itertools
import json
import platform
import shutil
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dynts.decode.compress import compress
from dynts.errors import DyntsError
from dynts.tiny.pretrain import Recipe, pretrain
from dynts.tiny.schedule import budget_for, schedule
from dynts.tiny.solve import Solution, mean_length, solve
from dynts.tiny.task import HELD_OUT, PREDICTOR, VALIDATION, make_problem
from dynts.tiny.tokenizer import build_tokenizer
from dynts.training.labelling import label_traces
from dynts.training.labels import LABELS
from dynts.training.saving import save_predictor
from dynts.training.train import TrainConfig, train_predictor
from dynts.training.transforms import TRANSFORMS

HELD_OUT_PROBLEMS = 500
_VALIDATION_PROBLEMS = 100
_PREDICTOR_PROBLEMS = 1500
_FUTURE_WINDOW = 72
"""The local window at 40% of the mean length."""
_TRANSFORM = "linear"
"""Of the labels; `training.json` compares all of them on the validation problems."""


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Make model, predictors and log in a folder.

    Args:
        out: the folder; it must not exist. Built beside it under another name and moved at the end.
        recipe: of the model.

    Returns:
        The log, as written to `training.json`.

    Raises:
        DyntsError: `out` exists.
    """
    if out.exists():
        raise DyntsError(f"{out} exists already: choose a folder that does not")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    work = partial / "work"
    work.mkdir(parents=True)
    started = time.perf_counter()
    tokenizer = build_tokenizer()
    log = _Log(started, tokenizer, recipe)
    model = pretrain(tokenizer, recipe, log)
    model.generation_config.do_sample = False
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    minutes = {"model": log.minutes()}

    traces = work / "traces.jsonl"
    problems = [make_problem(seed) for seed in PREDICTOR[:_PREDICTOR_PROBLEMS]]
    solutions = solve(model, tokenizer, problems)
    rows = [
        {"question": problem.question, "response": solution.text, "answer": problem.answer}
        for problem, solution in zip(problems, solutions, strict=True)
    ]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = label_traces(
        model, tokenizer, traces, work / "shards", name="dynts-tiny", labels=LABELS, future_window=_FUTURE_WINDOW
    )
    minutes["traces and labels"] = log.minutes()
    predictors, transforms = {}, []
    for label, transform in itertools.product(LABELS, TRANSFORMS):
        trained = train_predictor(folder, TrainConfig(label=label, transform=transform, seed=recipe.seed))
        with compress(model, "dynts", schedule(budget_for(0.4)), trained.predictor, tokenizer=tokenizer):
            accuracy = _accuracy(solve(model, tokenizer, log.problems))
        own = trained.metrics["predictor"]
        transforms.append({"label": label, "transform": transform, "pass@1": accuracy, **own})
        print(transforms[-1], flush=True)
        if transform == _TRANSFORM:
            save_predictor(trained.predictor, partial / label)
            predictors[label] = trained.metrics
    minutes["predictors"] = log.minutes()

    held_out = [make_problem(seed) for seed in HELD_OUT[:HELD_OUT_PROBLEMS]]
    full, unthinking = solve(model, tokenizer, held_out), solve(model, tokenizer, held_out, thinking=False)
    minutes["all"] = log.minutes()
    shutil.rmtree(work)
    record = {
        "seed": recipe.seed,
        "minutes": minutes,
        "pretraining": log.rows,
        "held_out": {
            "problems": len(held_out),
            "pass@1": _accuracy(full),
            "pass@1 without thinking": _accuracy(unthinking),
            "mean thinking tokens": mean(solution.thinking_tokens for solution in full),
            "mean length": mean_length(full),
        },
        "transforms": transforms,
        "predictors": predictors,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
        "sha256": _hashes(partial),
    }
    (partial / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(out)
    return record


class _Log:
    """Prints progress, and measures the model on validation problems ten times on the way."""

    def __init__(self, started: float, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.started = started
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self.problems = [make_problem(seed) for seed in VALIDATION[:_VALIDATION_PROBLEMS]]

    def __call__(self, seen: int, loss: float, model: LlamaForCausalLM) -> None:
        self._losses.append(loss)
        if seen < min(self.recipe.tokens, (len(self.rows) + 1) * self.recipe.tokens / 10):
            return
        accuracy = _accuracy(solve(model.eval(), self.tokenizer, self.problems))
        model.train()
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self.rows.append({"minutes": self.minutes(), "tokens": seen, "loss": round(mean, 4), "pass@1": accuracy})
        print(self.rows[-1], flush=True)

    def minutes(self) -> float:
        return round((time.perf_counter() - self.started) / 60, 1)


def _accuracy(solutions: list[Solution]) -> float:
    return mean(solution.correct for solution in solutions)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training problems")
    parser.add_argument("--tokens", type=int, default=Recipe().tokens, help="how long to pretrain")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = build(arguments.out, Recipe(seed=arguments.seed, tokens=arguments.tokens))
    print(json.dumps(record["held_out"], indent=1))


if __name__ == "__main__":
    main()
