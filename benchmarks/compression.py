r"""How faithful each method stays at 2, 4, 8 and 16 times compression: real traces replayed by a model of your own.

    python benchmarks/compression.py --model DIR --gguf-file FILE --predictor DIR --predictor DIR --shards DIR \
        --traces FILE --out docs/results/NAME

Held-out traces are fed as they were written while their cache is compacted on schedule (`dynts.evaluate.replay`). A
trace that is compressed four times has room for a quarter of what was generated beside its question, so that methods
that keep the question are told apart by the rest. Measured is the KL of the distributions that the answer's tokens are
drawn from, and by how much less likely the thinking becomes. Every method is compared with `random, native` on the same
traces. Writes compression.json (after each trace and method: the same command continues, and measures methods that have
come since) and compression.md.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from replay_fidelity import finished_traces
from resumed_rows import read_rows, write_rows
from rich.progress import track
from scipy import stats

import dynts
from dynts.collect.plan import model_files
from dynts.config import CompressionConfig, ModelSource
from dynts.decode.arm import Arm, make_arms
from dynts.evaluate.intervals import mean_and_error
from dynts.evaluate.paired import SIGNIFICANT, holm
from dynts.evaluate.replay import FullCache, replay, with_full_cache
from dynts.methods import METHODS, DynTSBottom, Full
from dynts.methods.triattention import TriAttention
from dynts.models import load_model
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.traces.filters import Selected
from dynts.traces.sets import as_sets

WINDOW = 0.4
"""Local window, as a share of the room beside the question."""
RETENTION = 0.5
"""Share of the rest of that room that selected tokens keep."""
BASELINE = "random, native"
LEFT_OUT = (Full.name, DynTSBottom.name)


@dataclass(frozen=True, slots=True)
class Compressed:
    """A trace's schedule at one compression."""

    times: int
    config: CompressionConfig

    @classmethod
    def of(cls, trace: Selected, times: int) -> "Compressed":
        """Room for one of `times` generated tokens beside the question, and at least one selected one."""
        question, length = trace.tokens.question_end, len(trace.tokens.ids)
        room = math.ceil((length - question) / times)
        window = max(1, round(WINDOW * room))
        return cls(times, CompressionConfig(question + room, window, RETENTION))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "traces"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--gguf-file")
    parser.add_argument("--dtype")
    parser.add_argument("--predictor", action="append", default=[], help="repeatable, of one label each")
    parser.add_argument("--calibration", help="written by `dynts calibrate`; without it there is no triattention")
    parser.add_argument("--shards", type=Path, required=True, help="what the predictors were trained on")
    parser.add_argument("--count", type=int, default=16, help="held-out traces, the first ones that are short enough")
    parser.add_argument("--most", type=int, default=600, help="tokens of the longest trace that is taken")
    parser.add_argument("--arm", action="append", help="such as 'random, native', repeatable; default all")
    parser.add_argument("--times", type=int, action="append", help="compression, repeatable; default 2, 4, 8, 16")
    arguments = parser.parse_args()
    times = arguments.times or [2, 4, 8, 16]
    model, tokenizer = load_model(ModelSource(arguments.model, gguf_file=arguments.gguf_file, dtype=arguments.dtype))
    found = {folder: ImportancePredictor.from_pretrained(folder) for folder in arguments.predictor}
    predictors = {predictor.config.label: predictor for predictor in found.values()}
    if not predictors or len(predictors) < len(found):
        raise SystemExit("give --predictor at least once, and one predictor of a label only")
    sets = as_sets(arguments.traces)
    settings = {
        "model": arguments.gguf_file or Path(arguments.model).name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "predictors": {predictor.config.label: model_files(folder) for folder, predictor in found.items()},
        "traces_sha256": sets.sha256,
        "longest": arguments.most,
        "times": times,
        "window": WINDOW,
        "retention_ratio": RETENTION,
        "torch": torch.__version__,
    }
    path = arguments.out / "compression.json"
    rows = read_rows(path, settings)
    config = next(iter(predictors.values())).config
    traces = _traces(sets, tokenizer, arguments, config)
    arms = _arms(predictors)
    if arguments.calibration:
        triattention: Arm[ImportancePredictor] = Arm(TriAttention("native", calibration=arguments.calibration))
        arms[triattention.name()] = triattention
    if unknown := set(arguments.arm or arms) - set(arms):
        raise SystemExit(f"no arm is called {', '.join(unknown)}: take some of {'; '.join(arms)}")
    for trace in track(traces, "traces"):
        row = rows.setdefault(trace.trace.id, _lengths(trace))
        full: FullCache | None = None
        for name, arm in arms.items():
            if name in row["methods"] or name not in (arguments.arm or arms):
                continue
            full = full or with_full_cache(model, trace.tokens)
            row["methods"][name] = {
                str(each): _measure(model, tokenizer, trace, arm, Compressed.of(trace, each), full) for each in times
            }
            write_rows(path, settings, rows)
    shown = [rows[trace.trace.id] for trace in traces if trace.trace.id in rows]
    write_text_whole(path.with_suffix(".md"), wrap_prose(page(settings, shown)))


def _traces(sets: Any, tokenizer: Any, arguments: argparse.Namespace, config: PredictorConfig) -> list[Selected]:
    """The first held-out traces that are no longer than asked for."""
    smallest = CompressionConfig(10**6, 1, RETENTION)  # every question fits: budgets grow with it
    found = finished_traces(sets, tokenizer, 10**6, smallest, arguments.shards, config)
    return [trace for trace in found if len(trace.tokens.ids) <= arguments.most][: arguments.count]


def _arms(predictors: dict[str, ImportancePredictor]) -> dict[str, Arm[ImportancePredictor]]:
    """Every method in each granularity with the question kept, a native predictor with native sets only; then what
    keeps none, as published."""
    configs = {label: predictor.config for label, predictor in predictors.items()}
    names = [name for name in METHODS if name not in LEFT_OUT]
    arms = [
        *make_arms(names, ["shared", "native"], configs, protect_question=True),
        *make_arms(["dynts-all"], ["shared", "native"], configs, protect_question=False),
    ]
    found = {}
    for arm in arms:
        native = arm.predictor is not None and configs[arm.predictor].native
        if native == (arm.method.granularity == "native") or arm.predictor is None:
            found[arm.name()] = arm.loaded(predictors, arm.label)
    return found


def _lengths(trace: Selected) -> dict[str, Any]:
    return {
        "tokens": len(trace.tokens.ids),
        "question_tokens": trace.tokens.question_end,
        "answer_tokens": len(trace.tokens.ids) - trace.tokens.answer_start,
        "methods": {},
    }


def _measure(
    model: Any, tokenizer: Any, trace: Selected, arm: Arm[ImportancePredictor], schedule: Compressed, full: FullCache
) -> dict[str, float]:
    started = time.perf_counter()
    session = dynts.compress(model, arm.method, schedule.config, arm.predictor, tokenizer=tokenizer)
    found = replay(session, trace.tokens, full)
    return {
        "kl": float(found.kl.mean()),
        "thinking_loss": float(found.thinking_loss.mean()),
        "mean_tokens": found.mean_tokens,
        "compactions": found.compactions,
        "seconds": time.perf_counter() - started,
    }


def differences(rows: Sequence[dict[str, Any]], name: str, other: str, times: int) -> np.ndarray:
    """KL of the answer under one method less that under another, trace by trace: [traces], in nats a token."""
    both = [row["methods"] for row in rows if name in row["methods"] and other in row["methods"]]
    return np.array([each[name][str(times)]["kl"] - each[other][str(times)]["kl"] for each in both])


def verdicts(rows: Sequence[dict[str, Any]], names: Sequence[str], times: int) -> dict[str, str]:
    """Each method beside `random, native` on the same traces: Wilcoxon's signed ranks, corrected for all of them."""
    tested = [name for name in names if name != BASELINE and np.any(differences(rows, name, BASELINE, times))]
    if not tested or len(rows) < 2:
        return {}
    p_values = [float(stats.wilcoxon(differences(rows, name, BASELINE, times)).pvalue) for name in tested]
    found = {}
    for name, p in zip(tested, holm(p_values), strict=True):
        better = differences(rows, name, BASELINE, times).mean() < 0
        found[name] = "noise" if p >= SIGNIFICANT else "better" if better else "worse"
    return found


def page(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The tables: all traces, then short and long questions apart."""
    middle = median(row["question_tokens"] for row in rows)
    short = [row for row in rows if row["question_tokens"] <= middle]
    long = [row for row in rows if row["question_tokens"] > middle]
    described = [
        f"{settings['model']} in {settings['dtype']}, {len(rows)} held-out traces of at most {settings['longest']} "
        f"tokens, on average {mean(row['tokens'] for row in rows):.0f}: {_mean(rows, 'question_tokens'):.0f} the "
        f"question, {_mean(rows, 'answer_tokens'):.0f} the answer. Compressed n times, a cache has room for one of n "
        f"generated tokens beside the question; {settings['window']:.0%} of that room is the local window, and "
        f"selected tokens keep {settings['retention_ratio']:.0%} of the rest at a compaction. The question is kept, "
        "but for `window` and `dynts-all` (which also comes with it).",
        "",
        "KL of the answer from the full cache in nats a token, mean over traces (standard error), and the loss of log "
        f"p of a thinking token in brackets. Signs compare the KL with `{BASELINE}` on the same traces (Wilcoxon, "
        "two-sided, corrected by Holm for all methods of a column): + better, - worse, both below "
        f"{SIGNIFICANT}.",
    ]
    lines = ["# Fidelity by compression", "", "Made by `benchmarks/compression.py`.", "", *described, ""]
    for title, shown in {
        "All traces": rows,
        f"Short questions (at most {middle:.0f} tokens)": short,
        "Long questions": long,
    }.items():
        if shown:
            lines += [f"## {title}: {len(shown)}", "", _table(settings["times"], shown)]
    return "\n".join([*lines, f"torch {settings['torch']}", ""])


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return mean(row[name] for row in rows)


def _table(times: list[int], rows: list[dict[str, Any]]) -> str:
    names = [name for name in rows[0]["methods"] if all(name in row["methods"] for row in rows)]
    found = {each: verdicts(rows, names, each) for each in times}
    marks = {"better": " +", "worse": " -"}

    def cell(name: str, each: int) -> str:
        measured = [row["methods"][name][str(each)] for row in rows]
        value, error = mean_and_error([one["kl"] for one in measured])
        thinking = mean(one["thinking_loss"] for one in measured)
        return f"{value:.3f} ({error:.3f}){marks.get(found[each].get(name, ''), '')} [{thinking:.3f}]"

    return markdown_table(
        ["method", *(f"{each} times" for each in times)],
        [[name, *(cell(name, each) for each in times)] for name in names],
    )


if __name__ == "__main__":
    main()
