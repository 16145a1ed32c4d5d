"""The frontier as a table and as a picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dynts.planning.frontier import FrontierPoint
from dynts.report.tables import FigureTable, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONTIER_PICTURE = "frontier.png"
"""The picture's address on the page."""
_COLUMNS = (
    *("budget", "W_l", "r", "answer\nKL, nats", "+-", "thinking\nloss, nats", "+-"),
    *("total\nvariation", "cached\ntokens", "compacted\ntraces"),
)


def frontier_table(points: Sequence[FrontierPoint], chosen: FrontierPoint | None) -> FigureTable:
    """Return the table of all settings.

    Args:
        points: of the settings.
        chosen: of them, which gets a star.
    """
    return FigureTable(_COLUMNS, [_cells(point, point is chosen) for point in points])


def frontier_page(
    points: Sequence[FrontierPoint],
    chosen: FrontierPoint | None,
    tolerance: float,
    thinking_tolerance: float,
    about: Mapping[str, str],
) -> str:
    """Return the page in Markdown.

    Args:
        points: of all settings.
        chosen: of them.
        tolerance: the largest KL, in nats an answer token.
        thinking_tolerance: the largest thinking loss, in nats a thinking token.
        about: what was replayed, by what it is.
    """
    found = "No setting is within both." if chosen is None else f"Chosen, with a star: {chosen.setting.describe()}."
    paragraphs = (
        "# Budget, local window and retention ratio",
        "; ".join(f"{name}: {plain(value)}" for name, value in about.items()),
        f"{points[0].traces} traces were replayed under each setting. Tolerances: {tolerance:g} nats an answer token, "
        f"{thinking_tolerance:g} a thinking token. {found}",
        f"![Both losses against budget and cached tokens]({FRONTIER_PICTURE})",
        "Answer KL: how far the distributions of the answer's tokens move from those with the full cache. Thinking "
        "loss: by how much log p of a thinking token falls. Beside each its standard error (+-) over the traces. Total "
        "variation: the most that Pass@1 can lose, of traces sampled at temperature 1. Compacted traces are those "
        "long enough for it.",
        frontier_table(points, chosen).markdown(),
    )
    return "\n\n".join(paragraphs)


def draw_frontier(
    points: Sequence[FrontierPoint],
    chosen: FrontierPoint | None,
    tolerance: float,
    thinking_tolerance: float,
) -> "Figure":
    """Draw both losses against the budget and the tokens that a step attends to.

    Args:
        points: of all settings.
        chosen: of them.
        tolerance: the largest KL, in nats an answer token.
        thinking_tolerance: the largest thinking loss, in nats a thinking token.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    sizes = ("budget", "cached tokens of a step")
    ratios = sorted({point.setting.retention_ratio for point in points})
    losses: tuple[tuple[str, Callable[[FrontierPoint], float], float], ...] = (
        ("KL of an answer token, nats", lambda point: point.kl, tolerance),
        ("loss of a thinking token, nats", lambda point: point.thinking_loss, thinking_tolerance),
    )
    for row, (title, loss, limit) in zip(panels, losses, strict=True):
        for axes, name in zip(row, sizes, strict=True):
            for ratio in ratios:
                shown = [point for point in points if point.setting.retention_ratio == ratio]
                axes.plot([_size(point, name) for point in shown], list(map(loss, shown)), ".", label=f"r {ratio:g}")
            if chosen is not None:
                style = {"markersize": 10, "fillstyle": "none", "color": "black", "label": "chosen"}
                axes.plot(_size(chosen, name), loss(chosen), "o", **style)
            axes.axhline(limit, color="grey", linewidth=0.8, linestyle="--", label="tolerance")
            axes.set_yscale("symlog", linthresh=1e-4)  # 0 where nothing was evicted
        row[0].set_ylabel(title)
    for axes, name in zip(panels[-1], sizes, strict=True):
        axes.set_xlabel(name)
    panels[0][0].legend(frameon=False, fontsize="small")
    return figure


def _size(point: FrontierPoint, name: str) -> float:
    return point.setting.budget if name == "budget" else point.mean_tokens


def _cells(point: FrontierPoint, chosen: bool) -> list[str]:
    setting = point.setting
    return [
        f"{setting.budget}{' *' if chosen else ''}",
        f"{setting.local_window}",
        f"{setting.retention_ratio:g}",
        f"{point.kl:z.4f}",
        f"{point.kl_error:.4f}",
        f"{point.thinking_loss:z.4f}",
        f"{point.thinking_error:.4f}",
        f"{point.total_variation:.3f}",
        f"{point.mean_tokens:.0f}",
        f"{point.compacted} / {point.traces}",
    ]
