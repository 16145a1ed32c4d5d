r"""How faithful each method stays to the full cache: real traces replayed under every method, shared and native.

    python benchmarks/replay_fidelity.py --model DIR --gguf-file FILE --predictor DIR --shards DIR --traces FILE \
        --out docs/results

Each trace is fed as it was written while its cache is compacted on schedule (`dynts.evaluate.replay`). Measured is how
far the distributions of its answer's tokens move from those with the full cache (KL), and how much less likely its
thinking tokens become. Traces of another model will do: they are read, not written. Writes replay_fidelity.json (raw
numbers, after each
trace: the same command continues), replay_fidelity.md and replay_fidelity.png.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from every_arm import PUBLISHED, arms_by_name
from matplotlib import colormaps
from matplotlib.figure import Figure
from resumed_rows import read_rows, write_rows
from rich.progress import track
from transformers import PreTrainedTokenizerBase

import dynts
from dynts.analyze.prediction import choose_traces
from dynts.collect.plan import model_files
from dynts.config import CompressionConfig, ModelSource
from dynts.evaluate.intervals import mean_and_error
from dynts.evaluate.replay import replay, with_full_cache
from dynts.models import load_model
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.report.figures import save_figure
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.traces.filters import Selected, select_traces
from dynts.traces.sets import TraceSets, as_sets
from dynts.training.shards import ShardFolder

_FIGURES = {"kl": "KL", "loss": "answer", "thinking_loss": "thinking"}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "predictor", "traces"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--gguf-file")
    parser.add_argument("--future-predictor", help="a second predictor, trained on the future label")
    parser.add_argument("--count", type=int, default=100, help="the first fit traces, right or wrong")
    parser.add_argument("--shards", type=Path, help="those that the predictor was trained on: take its held-out traces")
    parser.add_argument("--budget", type=int, action="append", help="repeatable; default 224, 256, 320")
    parser.add_argument("--window", type=float, default=0.3, help="local window as a share of the budget")
    parser.add_argument("--retention-ratio", type=float, default=0.4)
    arguments = parser.parse_args()
    budgets = arguments.budget or [224, 256, 320]
    schedules = [
        CompressionConfig(budget, round(arguments.window * budget), arguments.retention_ratio) for budget in budgets
    ]
    model, tokenizer = load_model(ModelSource(arguments.model, gguf_file=arguments.gguf_file))
    predictors = {"answer": ImportancePredictor.from_pretrained(arguments.predictor)}
    if arguments.future_predictor:
        predictors["future"] = ImportancePredictor.from_pretrained(arguments.future_predictor)
    sets = as_sets(arguments.traces)
    settings = {
        "model": arguments.gguf_file or Path(arguments.model).name,
        "predictors": [model_files(name) for name in (arguments.predictor, arguments.future_predictor) if name],
        "traces_sha256": sets.sha256,
        "held_out": arguments.shards is not None,
        "budgets": budgets,
        "window": arguments.window,
        "retention_ratio": arguments.retention_ratio,
        "torch": torch.__version__,
    }
    path = arguments.out / "replay_fidelity.json"
    rows = read_rows(path, settings)
    sessions = {
        (name, schedule): dynts.compress(model, item.method, schedule, item.predictor, tokenizer=tokenizer)
        for name, item in arms_by_name(predictors).items()
        if name != "full"
        for schedule in schedules
    }
    smallest = min(schedules, key=lambda item: item.budget)
    config = predictors["answer"].config
    traces = finished_traces(sets, tokenizer, arguments.count, smallest, arguments.shards, config)
    for trace in track(traces):
        if trace.trace.id not in rows:
            rows[trace.trace.id] = _measure(trace, model, sessions)
            write_rows(path, settings, rows)
    shown = [rows[trace.trace.id] for trace in traces]
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, shown)))
    _draw(budgets, shown, path.with_suffix(".png"))


def finished_traces(
    sets: TraceSets,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    smallest: CompressionConfig,
    shards: Path | None,
    config: PredictorConfig,
) -> list[Selected]:
    """The first finished traces whose question leaves room in the smallest budget; with shards, of those that were held
    out when the predictor of that config was trained on them."""
    held_out = None
    if shards is not None:
        folds, _ = choose_traces([ShardFolder.open(shards)], config, "held-out")
        held_out = {example.index for fold in folds for example in fold.analysed}
    found: list[Selected] = []
    for index, trace in enumerate(select_traces(sets, tokenizer, keep_incorrect=True)):
        if isinstance(trace, str) or (held_out is not None and index not in held_out):
            continue
        if smallest.selected_tokens(trace.tokens.question_end) >= 1:
            found.append(trace)
        if len(found) == count:
            break
    return found


def _measure(trace: Selected, model: Any, sessions: dict[tuple[str, CompressionConfig], Any]) -> dict[str, Any]:
    full = with_full_cache(model, trace.tokens)
    row: dict[str, Any] = {
        "tokens": len(trace.tokens.ids),
        "question_tokens": trace.tokens.question_end,
        "answer_tokens": len(full.logits),
        "methods": {},
    }
    for (name, schedule), session in sessions.items():
        found = replay(session, trace.tokens, full)
        row["methods"].setdefault(name, {})[str(schedule.budget)] = {
            "kl": float(found.kl.mean()),
            "loss": float(found.loss.mean()),
            "thinking_loss": float(found.thinking_loss.mean()),
            "kept": found.kept,
            "mean_tokens": found.mean_tokens,
            "compactions": found.compactions,
        }
    return row


def _compacted(rows: list[dict[str, Any]], name: str, budget: int) -> list[dict[str, Any]]:
    """What a method did to the traces that reach the budget; the others are as with the full cache."""
    found = [row["methods"][name][str(budget)] for row in rows]
    return [row for row in found if row["compactions"]]


def _page(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    budgets = settings["budgets"]
    tokens, answer = (mean(row[name] for row in rows) for name in ("tokens", "answer_tokens"))
    held_out = " that the predictors' training held out," if settings["held_out"] else ""
    lines = [
        "# Fidelity under compression",
        "",
        f"Made by `benchmarks/replay_fidelity.py`; {settings['model']}, {len(rows)} traces{held_out} of {tokens:.0f} "
        f"tokens on average, {answer:.0f} of them the answer; local window {settings['window']:.0%} of the budget, "
        f"retention ratio {settings['retention_ratio']}. In nats a token, mean over the traces that reach the budget "
        "(standard error): KL of the answer from the full cache, and by how much log p of the answer's and of the "
        "thinking's tokens falls.",
        "",
    ]
    cells = [
        [name, *(cell(_compacted(rows, name, budget), figure) for budget in budgets for figure in _FIGURES)]
        for name in rows[0]["methods"]
    ]
    reached = {budget: len(_compacted(rows, next(iter(rows[0]["methods"])), budget)) for budget in budgets}
    columns = [
        f"budget {budget} ({reached[budget]} traces): {title}" if title == "KL" else title
        for budget in budgets
        for title in _FIGURES.values()
    ]
    return "\n".join([*lines, markdown_table(["method", *columns], cells), f"torch {settings['torch']}", ""])


def cell(rows: list[dict[str, Any]], figure: str) -> str:
    """Mean of a figure and its standard error."""
    values = [row[figure] for row in rows]
    if not values:
        return "-"
    return "{:.3f} ({:.3f})".format(*mean_and_error(values))


def _draw(budgets: list[int], rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, value, title in zip(
        panels, ("kl", "thinking_loss"), ("KL of an answer token", "loss of log p of a thinking token"), strict=True
    ):
        axes.set_prop_cycle(color=colormaps["tab20"].colors)  # more methods than the usual ten colours
        for name in rows[0]["methods"]:
            if name.endswith(PUBLISHED):
                continue
            means = [[row[value] for row in _compacted(rows, name, budget)] for budget in budgets]
            shown = [(budget, mean(found)) for budget, found in zip(budgets, means, strict=True) if found]
            style = "--" if name.endswith("native") else "-"
            axes.plot([point[0] for point in shown], [point[1] for point in shown], style, marker=".", label=name)
        axes.set_xlabel("budget, tokens")
        axes.set_ylabel(f"{title}, nats")
        axes.set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
