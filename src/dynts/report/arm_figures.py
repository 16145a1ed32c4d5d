"""Figures of evaluated arms: Pass@1 against the budget, cost step by step, grids of settings, and the summary."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter

from dynts.evaluate.metrics import by_question
from dynts.methods import DynTS
from dynts.models.costs import flops_by_length
from dynts.report.figures import SMALL, WIDTH, Look
from dynts.report.groups import EvaluatedArm, Group, describe_config, shared_config

_DODGE = 0.004


def draw_budgets(group: Group, looks: Mapping[str, Look]) -> Figure | None:
    """Draw one line a method with 95% intervals, the full cache across; None where there are not two budgets.

    Of a budget's windows and ratios those are shown that most methods have.

    Args:
        group: of arms.
        looks: of all methods that the report shows, by name.
    """
    budgets = sorted({entry.config.budget for entry in group.compressed if entry.config is not None})
    if len(budgets) < 2:
        return None
    shown = [entry for budget in budgets for entry in at_budget(group.compressed, budget)]
    methods = [method for method in group.methods if any(entry.method == method for entry in shown)]
    rows = -(-(len(methods) + 1) // 3)
    figure = Figure(figsize=(WIDTH, 3.4 + 0.19 * rows), layout="constrained")
    axes = figure.subplots()
    if group.full is not None:
        full = group.full.metrics.pass_at_1
        axes.axhline(full.value, color=looks[group.full.method].colour, linewidth=1.2, label=group.full.method)
        axes.axhspan(full.low, full.high, color=looks[group.full.method].colour, alpha=0.08, linewidth=0)
    for number, method in enumerate(methods):
        mine = [entry for entry in shown if entry.method == method]
        look = looks[method]
        estimates = [entry.metrics.pass_at_1 for entry in mine]
        # side by side, so that the intervals do not hide one another
        aside = 1 + _DODGE * (number - (len(methods) - 1) / 2) * (budgets[-1] / budgets[0]) ** 0.5
        axes.errorbar(
            [entry.config.budget * aside for entry in mine if entry.config is not None],
            [estimate.value for estimate in estimates],
            yerr=[
                [estimate.value - estimate.low for estimate in estimates],
                [estimate.high - estimate.value for estimate in estimates],
            ],
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
            markerfacecolor=look.colour if look.filled else "white",
            markersize=5,
            linewidth=1.3,
            elinewidth=0.7,
            label=method,
        )
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{budget}" for budget in budgets], fontsize=SMALL)
    axes.minorticks_off()
    axes.set_xlabel("budget, tokens", fontsize=SMALL)
    axes.set_ylabel("Pass@1", fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=-0.02)  # markers at 0 are whole
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def at_budget(entries: Sequence[EvaluatedArm], budget: int) -> list[EvaluatedArm]:
    """Return the arms of a budget that share the commonest window and ratio.

    Args:
        entries: with a budget.
        budget: the budget, which one of them has at least.
    """
    there = [entry for entry in entries if entry.config is not None and entry.config.budget == budget]
    common = shared_config(there)
    return [entry for entry in there if entry.config == common]


_BUDGETS = 3


def draw_cost(group: Group, looks: Mapping[str, Look]) -> tuple[str, Figure] | None:
    """Draw memory and FLOPs step by step on one problem, and return its id with the picture.

    None where nothing has a budget, or no problem was answered by all that are shown.

    Shown are the full cache and one method, dynts if it is there, at its largest three budgets: the schedule of cache
    lengths is the same for all methods. Of the problems it is the one whose first sample is longest.

    Args:
        group: of arms.
        looks: of all methods that the report shows, by name.
    """
    if not group.compressed:
        return None
    entries = [*([group.full] if group.full else []), *_one_method(group)]
    answered = [{problem: samples[0] for problem, samples in by_question(each.arm.samples).items()} for each in entries]
    common = sorted(set.intersection(*map(set, answered)))
    if not common:
        return None
    problem = max(common, key=lambda each: answered[0][each].generated_tokens)
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(1, 1 if group.model is None else 2, squeeze=False)[0]
    for number, (entry, samples) in enumerate(zip(entries, answered, strict=True)):
        attended = samples[problem].attended()
        if not len(attended):
            continue
        # the corners of the curve draw it all
        jumps = np.flatnonzero(np.diff(attended) != 1)
        corners = np.unique([0, *jumps, *jumps + 1, len(attended) - 1])
        values = [attended[corners]]
        if group.model is not None:
            table = flops_by_length(group.model.shape, int(attended.max()), entry.arm.uses_predictor)
            values.append(table[attended[corners]])
        budgets_before = number - (group.full is not None)
        for axes, value in zip(panels, values, strict=True):
            axes.plot(
                corners + 1,
                value,
                color=looks[entry.method].colour,
                alpha=1 - 0.3 * max(0, budgets_before),
                linewidth=1.2,
                label=entry.method if entry.config is None else f"{entry.method}, budget {entry.config.budget}",
            )
    panels[0].set_ylabel("cached tokens", fontsize=SMALL)
    if group.model is not None:
        mib = group.model.kv_bytes_per_token / 2**20
        memory = panels[0].secondary_yaxis("right", functions=(lambda tokens: tokens * mib, lambda size: size / mib))
        memory.set_ylabel("keys and values, MiB", fontsize=SMALL)
        memory.tick_params(labelsize=SMALL)
        panels[1].set_ylabel("FLOPs of the step", fontsize=SMALL)
        panels[1].yaxis.set_major_formatter(EngFormatter())
    for axes in panels:
        axes.set_xlabel("decoding step", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines["top"].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)
    return problem, figure


def _one_method(group: Group) -> list[EvaluatedArm]:
    """One entry of each of the largest budgets of a method, dynts if it is there."""
    first = next((entry for entry in group.compressed if entry.arm.kind is DynTS), group.compressed[0])
    mine = [entry for entry in group.compressed if entry.method == first.method]
    budgets = sorted({entry.config.budget for entry in mine if entry.config is not None}, reverse=True)
    return [at_budget(mine, budget)[0] for budget in budgets[:_BUDGETS]]


def draw_grids(group: Group) -> Iterator[tuple[str, int, Figure]]:
    """Draw a heat map for each method and budget whose arms span at least two windows and two ratios."""
    found: dict[tuple[str, int], dict[tuple[int, float], float]] = {}
    for entry in group.compressed:
        if entry.config is not None:
            cells = found.setdefault((entry.method, entry.config.budget), {})
            cells[entry.config.local_window, entry.config.retention_ratio] = entry.metrics.pass_at_1.value
    for (method, budget), cells in found.items():
        windows = sorted({window for window, _ in cells})
        ratios = sorted({ratio for _, ratio in cells})
        if len(windows) >= 2 and len(ratios) >= 2:
            yield method, budget, _draw(f"{method}, budget {budget}", windows, ratios, cells)


def _draw(title: str, windows: list[int], ratios: list[float], cells: dict[tuple[int, float], float]) -> Figure:
    values = np.array([[cells.get((window, ratio), np.nan) for ratio in ratios] for window in windows])
    width = min(WIDTH, 1.9 + 0.75 * len(ratios))
    figure = Figure(figsize=(width, 1.3 + 0.45 * len(windows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        colour = "white" if value <= middle else "black"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=SMALL, color=colour)
    axes.set_xticks(range(len(ratios)), [f"{ratio:.3g}" for ratio in ratios], fontsize=SMALL)
    axes.set_yticks(range(len(windows)), [f"{window}" for window in windows], fontsize=SMALL)
    axes.set_xlabel("retention ratio", fontsize=SMALL)
    axes.set_ylabel("local window, tokens", fontsize=SMALL)
    axes.set_title(title, fontsize=SMALL + 1)
    bar = figure.colorbar(image)
    bar.set_label("Pass@1", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def draw_summary(group: Group, looks: Mapping[str, Look]) -> Figure | None:
    """Draw Pass@1 with intervals and mean cached tokens, one bar a method; None where nothing has a budget.

    Of several budgets the one that most methods have is shown.

    Args:
        group: of arms.
        looks: of all methods that the report shows, by name.
    """
    if not group.compressed:
        return None
    config = shared_config(group.compressed)
    shown = [entry for entry in group.entries if entry.config in (None, config)]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.27 * len(shown)), layout="constrained")
    accuracy, cache = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = range(len(shown))
    colours = [looks[entry.method].colour for entry in shown]
    hatches = [looks[entry.method].hatch for entry in shown]
    style = {"color": colours, "hatch": hatches, "edgecolor": "white", "linewidth": 0, "height": 0.72}
    outline = [withStroke(linewidth=2.5, foreground="white")]  # to be seen on dark bars
    estimates = [entry.metrics.pass_at_1 for entry in shown]
    accuracy.barh(places, [estimate.value for estimate in estimates], **style)
    for place, estimate in zip(places, estimates, strict=True):
        bounds = [estimate.low, estimate.high]
        (whisker,) = accuracy.plot(bounds, [place, place], "|-", color="black", markersize=5, linewidth=1)
        whisker.set_path_effects(outline)
        accuracy.text(estimate.high + 0.02, place, f"{estimate.value:.3f}", va="center", fontsize=SMALL)
    accuracy.set_xlim(0, max(estimate.high for estimate in estimates) + 0.17)
    accuracy.set_yticks(places, [entry.method for entry in shown], fontsize=SMALL)
    accuracy.invert_yaxis()
    accuracy.set_xlabel("Pass@1", fontsize=SMALL)
    means = [entry.metrics.mean_tokens for entry in shown]
    cache.barh(places, means, **style)
    for place, value in zip(places, means, strict=True):
        cache.text(value, place, f" {value:.0f}", va="center", fontsize=SMALL)
    cache.set_xlim(0, 1.25 * max(means))
    cache.set_xlabel("cached tokens, mean", fontsize=SMALL)
    for axes in (accuracy, cache):
        axes.tick_params(axis="x", labelsize=SMALL)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(describe_config(config), fontsize=SMALL + 1)
    return figure
