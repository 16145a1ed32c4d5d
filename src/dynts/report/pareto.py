"""The page and the picture of the Pareto principle."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from dynts.analyze.measure import Row
from dynts.analyze.pareto import PREDICTED, TRUE, ParetoPoint
from dynts.report.tables import markdown_table, plain

_COLORS = {
    f"top, {TRUE}": "tab:blue",
    f"top, {PREDICTED}": "tab:purple",
    "recent": "tab:green",
    "random": "tab:grey",
    f"bottom, {TRUE}": "tab:red",
    f"bottom, {PREDICTED}": "tab:orange",
}


def pareto_record(found: dict[str, list[ParetoPoint]], rows: Sequence[Row], source: dict[str, Any]) -> dict[str, Any]:
    """Return all numbers, for JSON.

    Args:
        found: points by curve.
        rows: of the traces.
        source: what was analysed.
    """
    return {
        "source": source,
        "traces": len(rows),
        "thinking_tokens": mean(row["thinking_tokens"] for row in rows),
        "curves": {name: [asdict(point) for point in points] for name, points in found.items()},
    }


def pareto_page(found: dict[str, list[ParetoPoint]], rows: Sequence[Row], source: dict[str, Any]) -> list[str]:
    """Return the page's paragraphs in Markdown, the title first.

    Args:
        found: points by curve.
        rows: of the traces.
        source: what was analysed.
    """
    total = len(rows)
    columns = ("kept", *found)
    by_share = list(zip(*found.values(), strict=True))
    accuracy = [
        (_percent(row[0]), *(f"{point.correct / total:.2f} ({point.low:.2f}-{point.high:.2f})" for point in row))
        for row in by_share
    ]
    truncated = [(_percent(row[0]), *(f"{point.truncated / total:.2f}" for point in row)) for row in by_share]
    return [
        "# How few thinking tokens an answer needs",
        "; ".join(f"{name}: {plain(value)}" for name, value in source.items()),
        f"{total} traces with {mean(row['thinking_tokens'] for row in rows):.0f} thinking tokens on average. The model "
        "has read question and thinking in full; then all but the question and a share of the thinking tokens is "
        "evicted, and it answers greedily. `top` and `bottom` are chosen by importance, `recent` are the last ones.",
        "## Right answers",
        "Share of the traces, with 95% intervals (Wilson):",
        markdown_table(columns, accuracy),
        "## Stopped by the limit of new tokens",
        markdown_table(columns, truncated),
    ]


def draw_pareto(found: dict[str, list[ParetoPoint]], traces: int) -> Figure:
    """Draw accuracy against the share of thinking tokens that is kept, with 95% intervals.

    Args:
        found: points by curve.
        traces: how many there are.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        shares = [100 * point.share for point in points]
        line = "--" if name.endswith(PREDICTED) else "-"
        axes.plot(
            shares, [point.correct / traces for point in points], line, color=_COLORS[name], marker=".", label=name
        )
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(shares, low, high, color=_COLORS[name], alpha=0.1, linewidth=0)
    axes.set(xlabel="thinking tokens kept, %", ylabel="right answers", ylim=(-0.02, 1.02))
    figure.legend(loc="outside right center", frameon=False, title=f"{traces} traces, 95% bands")
    return figure


def _percent(point: ParetoPoint) -> str:
    return f"{100 * point.share:g}%"
