"""The page and the picture of a predictor's quality."""

from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dynts.analyze.prediction import PREDICTOR, QUANTILES, SHARES, Prediction
from dynts.report.tables import markdown_table, plain
from dynts.training.metrics import METRICS

_COLORS = {PREDICTOR: "tab:blue", "token_identity": "tab:orange", "position_only": "tab:green", "random": "tab:grey"}


def prediction_record(found: Prediction, source: dict[str, Any]) -> dict[str, Any]:
    """Return all numbers, for JSON.

    Args:
        found: what was measured.
        source: what was analysed.
    """
    return {"source": source, **asdict(found), "quantiles_at": QUANTILES, "overlaps_at": SHARES}


def prediction_page(found: Prediction, source: dict[str, Any]) -> list[str]:
    """Return the page's paragraphs in Markdown, the title first.

    Args:
        found: what was measured.
        source: what was analysed.
    """
    names = [_words(name) for name in METRICS]
    means = [(_words(name), *_figures(values)) for name, values in found.metrics.items()]
    quantiles = [(_words(name), *(f"{value:.3f}" for value in found.quantiles[PREDICTOR][name])) for name in METRICS]
    overlaps = [(_words(name), *(f"{value:.3f}" for value in values)) for name, values in found.overlaps.items()]
    bins = [tuple(f"{value:.3f}" for value in asdict(item).values()) for item in found.calibration]
    page = [
        "# Quality of a predictor",
        "; ".join(f"{name}: {plain(value)}" for name, value in source.items()),
        f"{found.traces} traces, every trace counting alike. The paper reports a Kendall tau above 0.8 and a top-30% "
        "overlap above 80% for its own models (arXiv 2601.18383). The trivial predictors know only a token's identity, "
        "only its position, or nothing. Higher is better, except for mse, which is in units of the transformed label.",
        markdown_table(("", *names), means),
        "## Over the traces",
        f"What that share of the {found.traces} traces does not exceed, for the predictor:",
        markdown_table(("", *(f"{share:.0%}" for share in QUANTILES)), quantiles),
        "## Overlap of predicted and true top tokens",
        markdown_table(("", *(f"{share:.0%}" for share in SHARES)), overlaps),
        "## Calibration",
        "Tokens of all traces in bins of similar scores: mean score, mean transformed label, mean rank of the label "
        "within its trace (1 is the most important), and what 10% and 90% of these ranks do not exceed:",
        markdown_table(("score", "label", "label rank", "10%", "90%"), bins),
    ]
    if found.groups:
        rows = [
            (f"{plain(group)} ({found.group_traces[group]}): {_words(name)}", *_figures(values))
            for group, metrics in found.groups.items()
            for name, values in metrics.items()
        ]
        page += ["## By group", "Traces in brackets:", markdown_table(("", *names), rows)]
    return page


def draw_prediction(found: Prediction, transform: str) -> Figure:
    """Draw three panels: Kendall tau over the traces, overlap of the top sets, calibration.

    Args:
        found: what to draw.
        transform: of the predictor's targets; where it is "rank", scores should equal label ranks.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    spread, overlap, calibration = figure.subplots(1, 3)
    taus = found.taus[PREDICTOR]
    spread.hist(taus, bins=min(30, max(5, len(taus) // 4)), color="lightsteelblue")
    percent = 100 * np.array(SHARES)
    for name, values in found.overlaps.items():
        color = _COLORS[name]
        tau = found.metrics[name]["kendall_tau"]
        spread.axvline(tau, color=color, label=f"{_words(name)}: mean {tau:.2f}")
        overlap.plot(percent, 100 * np.array(values), marker=".", color=color, label=_words(name))
    spread.set(xlabel="Kendall tau of a trace", ylabel="traces (histogram: predictor)")
    overlap.set(xlabel="top tokens, %", ylabel="overlap of predicted and true top tokens, %", ylim=(0, 100))
    # above, where no line runs through it
    spread.legend(frameon=False, fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    overlap.legend(frameon=False, fontsize="small")
    scores = [item.score for item in found.calibration]
    calibration.plot(
        scores, [item.rank for item in found.calibration], marker=".", color=_COLORS[PREDICTOR], label="mean"
    )
    low, high = [item.low for item in found.calibration], [item.high for item in found.calibration]
    calibration.fill_between(
        scores, low, high, color=_COLORS[PREDICTOR], alpha=0.15, linewidth=0, label="10% to 90% of the tokens"
    )
    if transform == "rank":
        calibration.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=0.8, label="score = rank")
    calibration.set(xlabel="predicted score", ylabel="rank of the label within its trace", ylim=(0, 1))
    calibration.legend(frameon=False, fontsize="small", loc="upper left")
    return figure


def _figures(values: dict[str, float]) -> list[str]:
    return [f"{values[name]:.3f}" for name in METRICS]


def _words(name: str) -> str:
    return name.replace("_", " ")
