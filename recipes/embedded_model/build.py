"""Make the embedded model and its predictors from nothing: `python -m recipes.embedded_model.build --out FOLDER`.

Pretrains the model, lets it solve problems of their own seed range, labels its correct traces with its own attention,
trains a predictor for each label, and measures all of it on held-out problems. `training.json` records what happened.

Always two threads, so that the weights do not depend on the number of cores.
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
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from dynts.decode.compress import compress
from dynts.errors import DyntsError
from dynts.store.files import write_text_whole
from dynts.store.jsonlines import read_object
from dynts.tiny import LABELS
from dynts.tiny.solve import Solution, budget_for, mean_length, schedule, solve
from dynts.tiny.task import HELD_OUT, PREDICTOR, VALIDATION, ChainProblem, make_problem
from dynts.training.labelling import label_traces
from dynts.training.train import TrainConfig, save_predictor, train_predictor
from dynts.training.transforms import TRANSFORMS
from recipes.embedded_model.pretrain import Recipe, pretrain
from recipes.embedded_model.solution import write_traces
from recipes.embedded_model.tokenizer import build_tokenizer

_HELD_OUT_PROBLEMS = 500
_VALIDATION_PROBLEMS = 100
PREDICTOR_PROBLEMS = 1200
FUTURE_WINDOW = 75
"""The local window at 40% of the mean length."""
TRANSFORM = "linear"
"""Of the labels; `training.json` compares all of them on the validation problems."""


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Make model, predictors and log in a folder; interrupted after the pretraining, continue where it stopped.

    Args:
        out: the folder; it must not exist. Built beside it under another name and moved at the end.
        recipe: of the model.

    Returns:
        The log, as written to `training.json`.

    Raises:
        DyntsError: `out` exists, or what is there to continue has another seed or length.
    """
    if out.exists():
        raise DyntsError(f"{out} exists already: choose a folder that does not")
    partial = out.with_name(f".{out.name}.partial")
    work = partial / "work"
    work.mkdir(parents=True, exist_ok=True)
    progress = _Progress(work / "progress.json", {"seed": recipe.seed, "tokens": recipe.tokens})
    tokenizer = build_tokenizer()
    if "pretraining" not in progress.done:
        log = _Log(progress, tokenizer, recipe)
        pretrained = pretrain(tokenizer, recipe, log)
        pretrained.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        progress.finish("pretraining", log.rows)
    model = LlamaForCausalLM.from_pretrained(partial).eval()

    traces = work / "traces.jsonl"
    if "traces" not in progress.done:
        problems = [make_problem(seed) for seed in PREDICTOR[:PREDICTOR_PROBLEMS]]
        write_traces(traces, problems, solve(model, tokenizer, problems))
        progress.finish("traces", len(problems))
    folder = label_traces(
        model, tokenizer, traces, work / "shards", name="dynts-tiny", labels=LABELS, future_window=FUTURE_WINDOW
    )
    for label, transform in itertools.product(LABELS, TRANSFORMS):
        stage = f"{label}, {transform}"
        if stage in progress.done:
            continue
        trained = train_predictor(folder, predictor_recipe(label, transform, recipe.seed))
        with compress(model, "dynts", schedule(budget_for(0.4)), trained.predictor, tokenizer=tokenizer):
            accuracy = _accuracy(solve(model, tokenizer, _validation_problems()))
        if transform == TRANSFORM:
            save_predictor(trained.predictor, partial / label, overwrite=True)
        progress.finish(stage, {"pass@1": accuracy, "metrics": trained.metrics})
    if "held_out" not in progress.done:
        progress.finish("held_out", _held_out(model, tokenizer))

    record = {
        **progress.done,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    shutil.rmtree(work)
    record["sha256"] = _hashes(partial)
    (partial / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    partial.rename(out)
    return record


def predictor_recipe(label: str, transform: str, seed: int) -> TrainConfig:
    """Return how the embedded predictors are trained.

    Args:
        label: one of `LABELS`.
        transform: of the label, one of `TRANSFORMS`.
        seed: of weights, split and order.
    """
    return TrainConfig(label=label, transform=transform, epochs=25, batch_traces=2, learning_rate=3e-3, seed=seed)


def _validation_problems() -> list[ChainProblem]:
    return [make_problem(seed) for seed in VALIDATION[:_VALIDATION_PROBLEMS]]


def _held_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    problems = [make_problem(seed) for seed in HELD_OUT[:_HELD_OUT_PROBLEMS]]
    full, unthinking = solve(model, tokenizer, problems), solve(model, tokenizer, problems, thinking=False)
    return {
        "problems": len(problems),
        "pass@1": _accuracy(full),
        "pass@1 without thinking": _accuracy(unthinking),
        "mean question tokens": mean(solution.prompt_tokens for solution in full),
        "mean thinking tokens": mean(solution.thinking_tokens for solution in full),
        "mean length": mean_length(full),
    }


class _Progress:
    """Keeps what is done in a file, with the minutes that it took."""

    def __init__(self, path: Path, settings: dict[str, int]) -> None:
        self.path = path
        self.done: dict[str, Any] = {**settings, "minutes": {}}
        if path.exists():
            self.done = read_object(path)
            found = {name: self.done[name] for name in settings}
            if found != settings:
                raise DyntsError(f"{path.parent.parent} holds a run with {found}, not {settings}: remove it")
        self._before = max(self.done["minutes"].values(), default=0.0)
        self._started = time.perf_counter()

    def minutes(self) -> float:
        """Return the minutes since the start, interruptions left out."""
        return round(self._before + (time.perf_counter() - self._started) / 60, 1)

    def finish(self, stage: str, result: Any) -> None:
        """Note a stage.

        Args:
            stage: its name.
            result: what is to be known of it, as JSON can hold it.
        """
        self.done[stage] = result
        self.done["minutes"][stage] = self.minutes()
        print(f"{stage}: {self.minutes()} minutes {result}", flush=True)
        write_text_whole(self.path, json.dumps(self.done))


class _Log:
    """Prints progress, and measures the model on validation problems ten times on the way."""

    def __init__(self, progress: _Progress, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
        self.progress = progress
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []

    def __call__(self, seen: int, loss: float, model: LlamaForCausalLM) -> None:
        self._losses.append(loss)
        if seen < min(self.recipe.tokens, (len(self.rows) + 1) * self.recipe.tokens / 10):
            return
        accuracy = _accuracy(solve(model.eval(), self.tokenizer, _validation_problems()))
        model.train()
        loss = round(mean(self._losses), 4)
        self._losses.clear()
        self.rows.append({"minutes": self.progress.minutes(), "tokens": seen, "loss": loss, "pass@1": accuracy})
        print(self.rows[-1], flush=True)


def _accuracy(solutions: list[Solution]) -> float:
    return mean(solution.correct for solution in solutions)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training problems")
    parser.add_argument("--tokens", type=int, default=Recipe().tokens, help="how long to pretrain")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    record = build(arguments.out, Recipe(seed=arguments.seed, tokens=arguments.tokens))
    print(json.dumps(record["held_out"], indent=1))


if __name__ == "__main__":
    main()
