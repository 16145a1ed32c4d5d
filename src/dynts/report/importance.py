"""The page and the picture of how importance is spread."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynts.analyze.importance import EDGES, PARTS, SHARES, Importance
from dynts.report.figures import label_logarithmic
from dynts.report.tables import markdown_table, plain

Spell = Callable[[int], str]
"""The text of a token id."""

_TOP = (0.1, 0.2, 0.3)
_TOKENS_IN_TABLE = 25
_TOKENS_IN_FIGURE = 12
_THINKING, _QUESTION = "tab:blue", "tab:orange"


def importance_record(found: Importance, source: dict[str, Any], spell: Spell) -> dict[str, Any]:
    """Return all numbers, for JSON.

    Args:
        found: the importance.
        source: what was analysed.
        spell: shows a token id as text.
    """
    record = asdict(found)
    record["identities"] = [
        {"id": token, "text": spell(token), "share_of_tokens": tokens, "share_of_mass": mass}
        for token, tokens, mass in found.identities
    ]
    return {"source": source, **record, "mass_at": SHARES, "histogram_log10_edges": EDGES.tolist()}


def importance_page(found: Importance, source: dict[str, Any], spell: Spell) -> list[str]:
    """Return the page's paragraphs in Markdown, the title first.

    Args:
        found: the importance.
        source: what was analysed.
        spell: shows a token id as text.
    """
    low, high = found.above_mean_range
    figures = [
        ("thinking tokens above the trace's mean", f"{found.above_mean:.1%} ({low:.1%} to {high:.1%})", "about 21%")
    ]
    figures += [(f"mass of the top {share:.0%}", f"{found.mass_of(share):.1%}", "") for share in _TOP]
    page = [
        "# Importance of the thinking tokens",
        "; ".join(f"{name}: {plain(value)}" for name, value in source.items()),
        f"{found.traces} traces, {found.tokens} thinking tokens. Means over the traces; in brackets what 10% and 90% "
        "of the traces do not exceed. The paper's figure is for its own models and traces (arXiv 2601.18383, section "
        "3).",
        markdown_table(("", "measured", "paper"), figures),
    ]
    if found.question is not None:
        page += ["## Question and thinking", _question_table(found.question), _NOTE]
    page += [
        "## By position",
        "Mean importance over the mean of the trace's thinking tokens:",
        _position_table(found),
    ]
    tokens = [
        (_code(spell(token)), f"{share:.2%}", f"{mass:.2%}", f"{mass / share:.2f}")
        for token, share, mass in found.identities[:_TOKENS_IN_TABLE]
    ]
    page += [
        "## By token",
        f"The {len(tokens)} tokens that carry most of the thinking's importance, of {len(found.identities)}; "
        "importance over "
        "its trace's mean, every token counting alike:",
        markdown_table(("token", "of all tokens", "of the mass", "mean importance"), tokens),
    ]
    return page


def draw_importance(found: Importance, spell: Spell) -> Figure:
    """Draw four panels: distribution, mass of the top tokens, position, and which tokens.

    Args:
        found: the importance.
        spell: shows a token id as text.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    spread, mass, position, identity = figure.subplots(2, 2).flat
    _draw_histogram(spread, found)
    percent = 100 * np.array(SHARES)
    mass.plot(percent, 100 * np.array(found.mass), color=_THINKING)
    mass.plot([0, 100], [0, 100], color="grey", linestyle="--", linewidth=0.8, label="all tokens alike")
    for share in _TOP:
        at = found.mass_of(share)
        mass.plot(100 * share, 100 * at, "o", color=_THINKING)
        mass.annotate(f"top {share:.0%}: {at:.0%}", (100 * share, 100 * at), (8, -8), textcoords="offset points")
    mass.set(
        xlabel="most important thinking tokens, %", ylabel="importance that they hold, %", xlim=(0, 100), ylim=(0, 102)
    )
    mass.legend(frameon=False, loc="lower right")
    _draw_positions(position, found)
    _draw_tokens(identity, found, spell)
    return figure


_NOTE = (
    "Mass is the share of the answer's attention, mean over layers, heads and answer tokens; what is missing to 100% "
    "stays with the closing marker and the answer itself. Many models park attention that they do not need on the very "
    "first token, which is part of the question here and therefore left out in the third row."
)


def _question_table(question: dict[str, Any]) -> str:
    columns = ("", "tokens", "mean importance", "over thinking", "mass", "above thinking's mean")
    first = question["first_mass"]
    rest = question["mass"] - first
    per_token = rest / max(1.0, question["tokens"] - 1)
    return markdown_table(
        columns,
        [
            ("thinking", "", f"{question['thinking_mean']:.2e}", "1", f"{question['thinking_mass']:.1%}", ""),
            (
                "question",
                f"{question['tokens']:.0f}",
                f"{question['mean']:.2e}",
                f"{question['over_thinking']:.1f}",
                f"{question['mass']:.1%}",
                f"{question['above_mean']:.1%}",
            ),
            (
                "question but its first token",
                f"{question['tokens'] - 1:.0f}",
                f"{per_token:.2e}",
                f"{question['rest_over_thinking']:.1f}",
                f"{rest:.1%}",
                "",
            ),
        ],
    )


def _position_table(found: Importance) -> str:
    columns = {"thinking": found.parts}
    if found.question is not None:
        columns["question"] = found.question["parts"]
    rows = [
        [
            f"{part * 100 // PARTS}-{(part + 1) * 100 // PARTS}%",
            *("" if mean is None else f"{mean:.2f}" for mean in means),
        ]
        for part, means in enumerate(zip(*columns.values(), strict=True))
    ]
    return markdown_table(("part", *columns), rows)


def _draw_histogram(axes: Axes, found: Importance) -> None:
    widths, left = np.diff(EDGES), EDGES[:-1]
    colors = [_THINKING if edge >= -1e-9 else "lightsteelblue" for edge in left]
    axes.bar(left, 100 * np.array(found.histogram), widths, align="edge", color=colors)
    axes.axvline(0, color="black", linestyle="--", linewidth=0.8)
    axes.annotate(
        f"mean; {found.above_mean:.1%} lie above",
        (0, 1),
        (4, -12),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
    )
    ticks = range(round(EDGES[0]), round(EDGES[-1]) + 1)
    axes.set_xticks(list(ticks), [f"{10.0**tick:g}" for tick in ticks])
    axes.set(xlabel="importance over the trace's mean", ylabel="thinking tokens, %")


def _draw_positions(axes: Axes, found: Importance) -> None:
    places = np.arange(PARTS)
    # up and down from the mean: the length of a bar from 0 would mean nothing on the logarithmic axis
    axes.bar(places, np.array(found.parts, dtype=float) - 1, bottom=1, color=_THINKING, label="thinking")
    ticks = {0: "start", PARTS - 1: "end"}
    label = "tenths of the thinking"
    if found.question is not None:
        before = places - PARTS - 1
        means = np.array(found.question["parts"], dtype=float)
        axes.bar(before, means - 1, bottom=1, color=_QUESTION, label="question")
        axes.set_yscale("log")
        label_logarithmic(axes.yaxis)
        axes.legend(frameon=False)
        ticks = {int(before[0]): "start", int(before[-1]): "end", **ticks}
        label = "tenths of the question, tenths of the thinking"
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel=label, ylabel="mean importance over the thinking's")


def _draw_tokens(axes: Axes, found: Importance, spell: Spell) -> None:
    shown = found.identities[:_TOKENS_IN_FIGURE][::-1]
    places = np.arange(len(shown))
    axes.barh(places + 0.2, [100 * mass for _, _, mass in shown], 0.4, color=_THINKING, label="of the importance")
    axes.barh(
        places - 0.2, [100 * tokens for _, tokens, _ in shown], 0.4, color="lightgrey", label="of all thinking tokens"
    )
    # "$" starts a formula for matplotlib
    axes.set_yticks(places, [_visible(spell(token)).replace("$", r"\$") for token, _, _ in shown])
    axes.set_xlabel("share, %")
    axes.legend(frameon=False, loc="lower right")


def _visible(text: str) -> str:
    """White space made visible, as in JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace(" ", "␣")


def _code(text: str) -> str:
    """For a cell of a table in Markdown, between more backticks than are in it."""
    shown = _visible(text)
    fence = "`" * (2 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence} {shown} {fence}".replace("|", "\\|")
