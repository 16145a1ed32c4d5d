"""How well a replay ranks settings: what it measures beside real Pass@1, on the embedded model, for budgets x windows x
ratios.

    python benchmarks/tune_ranking.py --out docs/results

The model's own right traces with the full cache are replayed under every setting, as `dynts tune` does, and other
problems are solved under it. Kendall's tau says how far the two orders agree. Writes tune_ranking.json (raw numbers,
after each
setting: the same command continues), tune_ranking.md and tune_ranking.png.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from resumed_rows import read_rows, shipped_weights, write_rows
from rich.progress import track
from scipy.stats import kendalltau

import dynts
from dynts.decode.arm import Arm
from dynts.demo.compare import compare
from dynts.evaluate.replay import replay, with_full_cache
from dynts.methods import resolve_method
from dynts.planning.frontier import total_variation
from dynts.planning.tune import settings_grid
from dynts.report.figures import save_figure
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, solve
from dynts.tiny.task import HELD_OUT, VALIDATION, make_problem
from dynts.traces.tokens import TokenizedTrace, tokenize_trace
from dynts.traces.traces import Trace

SHARES = (0.24, 0.28, 0.32, 0.36)
"""Budgets as shares of the mean length."""
WINDOWS = (0.15, 0.25, 0.35)
RATIOS = (0.3, 0.5, 0.7)
_FIGURES = {
    "kl": "answer KL",
    "thinking_loss": "thinking loss",
    "worst_thinking_loss": "thinking loss, worst token",
    "total_variation": "total variation",
    "mean_tokens": "cached tokens",
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the results")
    parser.add_argument("--problems", type=int, default=200, help="solved under every setting")
    parser.add_argument("--traces", type=int, default=50, help="replayed under every setting")
    parser.add_argument("--method", default="dynts")
    parser.add_argument("--label", default="future", help="of the predictor")
    arguments = parser.parse_args()
    model, tokenizer = load_tiny_model()
    grid = settings_grid([budget_for(share) for share in SHARES], WINDOWS, RATIOS)
    path = arguments.out / "tune_ranking.json"
    settings = {
        **{name: getattr(arguments, name) for name in ("problems", "traces", "method", "label")},
        "grid": [list(setting.settings().values()) for setting in grid],
        "weights_sha256": shipped_weights(),
        "torch": torch.__version__,
    }
    rows = read_rows(path, settings)
    arm = Arm(resolve_method(arguments.method), predictor=load_tiny_predictor(arguments.label))
    traces = _right_traces(model, tokenizer, arguments.traces)
    full = [with_full_cache(model, trace) for trace in traces]
    problems = [make_problem(seed) for seed in HELD_OUT[: arguments.problems]]
    for setting in track(grid):
        key = setting.describe()
        if key in rows:
            continue
        session = dynts.compress(model, arm.method, setting, arm.predictor, tokenizer=tokenizer)
        solved = compare(model, tokenizer, problems, arm, setting)
        replays = [replay(session, trace, logits) for trace, logits in zip(traces, full, strict=True)]
        rows[key] = {
            "kl": mean(float(found.kl.mean()) for found in replays),
            "thinking_loss": mean(float(found.thinking_loss.mean()) for found in replays),
            "worst_thinking_loss": mean(float(found.thinking_loss.max()) for found in replays),
            "total_variation": total_variation(
                float(found.loss.sum() + found.thinking_loss.sum()) for found in replays
            ),
            "mean_tokens": mean(found.mean_tokens for found in replays),
            "pass_at_1": solved.pass_at_1,
        }
        write_rows(path, settings, rows)
    taus = _taus(rows)
    write_text_whole(path.with_suffix(".md"), wrap_prose(_page(settings, rows, taus)))
    _draw(rows, taus, path.with_suffix(".png"))
    print(json.dumps(taus))


def _right_traces(model: Any, tokenizer: Any, count: int) -> list[TokenizedTrace]:
    """Of problems that nothing else uses, so that settings are not ranked by the problems that they are tested on."""
    problems = [make_problem(seed) for seed in VALIDATION[: 2 * count]]
    pairs = zip(problems, solve(model, tokenizer, problems), strict=True)
    right = [
        tokenize_trace(tokenizer, Trace(problem.question, problem.question, solution.text, problem.answer))
        for problem, solution in pairs
        if solution.correct
    ]
    return right[:count]


def _taus(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Kendall's tau-b of the order by a figure (less is better) and by Pass@1, over all settings and within each
    budget."""
    groups = {"all settings": list(rows.values())}
    for key, row in rows.items():
        groups.setdefault(f"within {key.split(',')[0]}", []).append(row)
    return {
        name: {
            figure: float(kendalltau([-row[figure] for row in found], [row["pass_at_1"] for row in found]).statistic)
            for figure in _FIGURES
        }
        for name, found in groups.items()
    }


def _page(settings: dict[str, Any], rows: dict[str, Any], taus: dict[str, dict[str, float]]) -> str:
    cells = [
        [key, *(f"{row[figure]:.4g}" for figure in _FIGURES), f"{row['pass_at_1']:.3f}"] for key, row in rows.items()
    ]
    titles = list(_FIGURES.values())
    lines = [
        "# Does a replay rank settings as solving does?",
        "",
        f"Made by `benchmarks/tune_ranking.py` on the embedded model: {settings['method']} ({settings['label']} "
        f"label), {settings['traces']} traces replayed, {settings['problems']} other problems solved. Kendall's tau of "
        "the order by what a replay measures (less is better) and the order by Pass@1:",
        "",
        markdown_table(
            ["over", *titles], [[name, *(f"{tau:.3f}" for tau in found.values())] for name, found in taus.items()]
        ),
        "In nats a token, mean over the traces; the worst token of a trace; total variation of whole traces:",
        "",
        markdown_table(["setting", *titles, "Pass@1"], cells),
        f"torch {settings['torch']}",
        "",
    ]
    return "\n".join(lines)


def _draw(rows: dict[str, Any], taus: dict[str, dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shown = ("kl", "thinking_loss", "total_variation")
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, name in zip(panels, shown, strict=True):
        for budget in dict.fromkeys(key.split(",")[0] for key in rows):
            found = [row for key, row in rows.items() if key.split(",")[0] == budget]
            axes.plot([row[name] for row in found], [row["pass_at_1"] for row in found], ".", label=budget)
        if name != "total_variation":
            axes.set_xscale("symlog", linthresh=1e-4)
        axes.set_xlabel(_FIGURES[name])
        axes.set_title(f"Kendall's tau {taus['all settings'][name]:.2f}")
    panels[0].set_ylabel("Pass@1")
    panels[0].legend(frameon=False, fontsize="small")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
