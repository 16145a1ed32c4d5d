"""What gpu.py has measured as a page, and beside what was to be shown."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dynts.bench.machine import Machine
from dynts.report.tables import markdown_table
from gpu_sections import SECTIONS
from gpu_sections.bench import MANY, TINY, Row
from gpu_sections.speed import COMPILED, DEFAULT, DYNAMIC, DYNAMIC_CUDNN, FLOOR, STATIC

Sections = Mapping[str, list[Row]]


def line_of(row: Row) -> str:
    """A row in a line of text; what does not fit in one, and what there is none of, is left out."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in row.items() if _shown(value))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return str(value)


_TINY = "At this size they mean nothing. "


def page_of(record: dict[str, Any]) -> str:
    """The page gpu.md.

    Args:
        record: everything that was measured, as gpu.json holds it.
    """
    machine = Machine(**{each.name: record["machine"][each.name] for each in fields(Machine)})
    had = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    parts = [
        "# On a GPU",
        f"{machine.describe()}; {had}. Attention implementation {record['attention']}.",
        f"Model: the shape `{record['shape']}`, random weights, {machine.dtype}. Questions of {record['prompt']} "
        f"tokens; where nothing else is said, {record['schedule']}. {_TINY if record['shape'] == TINY.shape else ''}"
        f"Made by `python benchmarks/gpu.py` in {record['seconds']:.0f} s; all figures are in [gpu.json](gpu.json).",
        "## What was to be shown",
        table_of(record["targets"]),
    ]
    for name, rows in record["sections"].items():
        told = " ".join((SECTIONS[name][0].__doc__ or "").split())
        parts += [f"## {name.capitalize()}", told, table_of(rows)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def table_of(rows: list[Row]) -> str:
    """Rows as a table in Markdown, with a column for each name that occurs."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if _shown(value)))
    return markdown_table(names, [[_shown(row.get(name)).replace("|", "/") for name in names] for row in rows])


def targets(sections: Sections) -> list[Row]:
    """What was to be shown on a 7B model, and what was found; `met` is empty where it was not measured."""
    steps, whole = sections.get("steps", []), sections.get("generate", [])
    found: list[Row] = []

    def expect(what: str, ratios: list[float], least: float | None = None, most: float | None = None) -> None:
        worst = None if not ratios else min(ratios) if least is not None else max(ratios)
        met = None if worst is None else worst >= least if least is not None else worst <= (most or 0)
        wanted = f"at least {least:g}" if least is not None else f"at most {most:g}"
        found.append({"what": what, "wanted": wanted, "found": worst, "met": met})

    for batch in (1, 32):
        for other, least in ((DYNAMIC, 2.5), (DYNAMIC_CUDNN, 6)):
            expect(f"{other} over default steps, batch {batch}", _ratios(steps, other, DEFAULT, "ms at", batch), least)
    for batch, most in ((1, 1.6), (32, 1.35), (64, 1.35)):
        ratios = _ratios(steps, COMPILED, FLOOR, "ms at", batch)
        expect(f"compile=True over the floor, batch {batch}", ratios, most=most)
    expect("allocated KV bytes over those computed", _column(steps, "KV over computed"), most=1)
    expect("generate over the sum of its steps", _column(whole, "over its steps"), most=1.1)
    long = [row for row in whole if row["tokens"] == MANY]
    ratios = _ratios(long, STATIC, DEFAULT, "ms a token", 32)
    expect(f"{STATIC} over default steps, generate, batch 32, {MANY} tokens", ratios, 1.3)
    moved = [row for row in sections.get("compaction", []) if "moving ms" in row]
    expect("moving over its floor", [row["moving ms"] / row["moving floor ms"] for row in moved], most=2)
    times = {row["labels"]: row["seconds"] for row in sections.get("labels", []) if "seconds" in row}
    plain = times.pop("none, a forward pass", None)
    expect("label future over a forward pass", [times["future"] / plain] if plain and "future" in times else [], most=3)
    return found


def _column(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _ratios(rows: list[Row], one: str, other: str, columns: str, batch: int) -> list[float]:
    """The ratios of one engine to another in all columns whose names begin so."""
    pair: list[Row] = [
        next((row for row in rows if (row["engine"], row["batch"]) == (name, batch)), {}) for name in (one, other)
    ]
    names = [name for name in pair[0] if name.startswith(columns) and name in pair[1]]
    return [pair[0][name] / pair[1][name] for name in names]
