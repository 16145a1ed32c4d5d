"""What was measured of decoding speed: as a table, as JSON, and as a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dynts.bench.latency import Percentiles, StreamSummary
from dynts.bench.machine import Machine
from dynts.bench.serving import Served
from dynts.bench.summary import EngineSummary
from dynts.report.tables import FigureTable, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS_PICTURE = "steps"
"""The picture's address on the page."""
_COLUMNS = ("engine", "bud-\nget", "rows", "new\ntokens", "tokens\n/s", "speed-up", "KV\nMiB", "first\nstep s")
_BUSY_COLUMNS = ("GPU\nms", "ker-\nnels")
_STREAM_COLUMNS = ("engine", "bud-\nget", "rows", "fail-\ned", "tokens\nasked", "got", "tokens\n/s", "re-\nquests\n/s")
_DEAD_COLUMN = "dead\nrows"
_WAITING_COLUMNS = (
    *("engine: requests", "num-\nber", "first\ntoken s\np50", "p95", "p99", "ms a\ntoken\np50", "p95", "p99"),
)
_STEP_COLUMNS = ("first\nms", "last\nms", "over\nfloor", "evict-\ning")


def bench_table(rows: Sequence[EngineSummary]) -> FigureTable:
    """Return the table of engines on pieces of work, at least one."""
    columns = (*_COLUMNS, *(_BUSY_COLUMNS if rows[0].busy else ()), *(_STEP_COLUMNS if rows[0].details else ()))
    return FigureTable(columns, [_cells(row) for row in rows])


def bench_tables(rows: Sequence[EngineSummary], machine: Machine) -> str:
    """Return the machine and the table in Markdown.

    Args:
        rows: the engines.
        machine: what the device can do.
    """
    return f"{plain(machine.describe())}\n\n{bench_table(rows).markdown()}"


def bench_page(rows: Sequence[EngineSummary], machine: Machine, about: str, *, picture: bool) -> str:
    """Return the page of decode steps, or of whole generations, in Markdown.

    Args:
        rows: the engines.
        machine: what the device can do.
        about: the model and what it was asked to do.
        picture: there is one of steps by cache length.
    """
    notes = (
        "Speed-up: over the first engine of the table, the median of the rounds' ratios, smallest and largest in "
        "brackets. KV: bytes behind keys and values at their peak. First step: of the first round; recording or "
        "compiling a step is part of it, and of no other figure."
    )
    if rows[0].details:
        notes += (
            " First and last ms: of a step at the shortest and the longest cache. Over floor: the last over the time "
            "that this machine needs to read the step's weights and cached tokens, or to compute its products. "
            "Evicting: share of the time that goes to compactions."
        )
    steps = f"\n## Time of a step by cached tokens\n\n![Time of a step]({STEPS_PICTURE})\n" if picture else ""
    return f"# Decoding speed\n\n{plain(about)}\n\n{bench_tables(rows, machine)}\n{notes}\n{steps}"


def serving_page(tables: str, about: str) -> str:
    """Return the page of streams in Markdown.

    Args:
        tables: see `serving_markdown`.
        about: the stream.
    """
    notes = (
        "First token: seconds from a request's arrival. ms a token: from its first token to its last. Short requests "
        "ask for at most the median number of tokens, long ones for more. Dead rows: share of the rows of all decode "
        "steps that held no unfinished sequence."
    )
    return f"# Requests that come at random times\n\n{plain(about)}\n\n{tables}\n{notes}\n"


def serving_markdown(rows: Sequence[StreamSummary], where: str) -> str:
    """Return where streams were served, their tables and remarks, in Markdown.

    Args:
        rows: the engines on the streams.
        where: they were served, in words.
    """
    tables = "\n".join(table.markdown() for table in serving_tables(rows))
    remarks = dict.fromkeys(f"{plain(remark)}\n" for row in rows for remark in row.remarks())
    return "\n".join([f"{plain(where)}\n", tables, *remarks])


def bench_json(rows: Sequence[EngineSummary], machine: Machine, prompt: int) -> str:
    """Return everything that was measured, as JSON.

    Args:
        rows: the engines.
        machine: what the device can do.
        prompt: tokens of each question.
    """
    record = {"machine": asdict(machine), "prompt": prompt, "rows": [asdict(row) for row in rows]}
    return json.dumps(record, indent=1) + "\n"


def serving_tables(rows: Sequence[StreamSummary]) -> tuple[FigureTable, FigureTable]:
    """Return the tables of engines on a stream: what they got done, and how long requests waited."""
    known = any(row.dead_rows is not None for row in rows)
    done = FigureTable(
        (*_STREAM_COLUMNS, *([_DEAD_COLUMN] if known else [])),
        [
            [
                _name(row),
                "" if row.budget is None else f"{row.budget}",
                "" if row.rows is None else f"{row.rows}",
                f"{sum(row.failures.values())}",
                f"{row.asked_tokens:.0f}",
                f"{row.got_tokens:.0f}",
                f"{row.tokens_per_second:.1f}",
                f"{row.requests_per_second:.2f}",
                *([] if row.dead_rows is None else [f"{row.dead_rows:.1%}"]),
            ]
            for row in rows
        ],
    )
    waiting = FigureTable(
        _WAITING_COLUMNS,
        [
            [
                f"{_name(row)}: {group}",
                f"{found.requests}",
                *_percentile_cells(found.first_seconds, 1),
                *_percentile_cells(found.token_seconds, 1000),
            ]
            for row in rows
            for group, found in row.waiting.items()
        ],
    )
    return done, waiting


def serving_json(found: Sequence[tuple[StreamSummary, Served]], about: Mapping[str, Any]) -> str:
    """Return everything that was measured of streams, as JSON, with what became of each request.

    Args:
        found: the engines on the streams.
        about: where and how it was measured.
    """
    rows = [asdict(row) | {"receptions": [asdict(one) for one in served.receptions]} for row, served in found]
    return json.dumps({**about, "rows": rows}, indent=1) + "\n"


def _name(row: StreamSummary) -> str:
    return row.engine if row.batching is None else f"{row.engine}, {row.batching}"


def _percentile_cells(found: Percentiles | None, scale: float) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [f"{scale * value:.3g}" for value in (found.p50, found.p95, found.p99)]


def _cells(row: EngineSummary) -> list[str]:
    cells = [
        row.engine,
        "" if row.budget is None else f"{row.budget}",
        f"{row.batch}",
        f"{row.generated}",
        f"{row.tokens_per_second.median:.1f}",
        f"{row.speedup.median:.2f} ({row.speedup.least:.1f}-{row.speedup.most:.1f})",
        f"{row.kv_bytes / 2**20:.0f}",
        "" if row.first_seconds is None else f"{row.first_seconds:.2g}",
    ]
    if row.busy is not None:
        cells += [f"{1000 * row.busy.seconds:.1f}", f"{row.busy.kernels}"]
    if row.details:
        first, last = row.details["steps"][0], row.details["steps"][-1]
        cells += [
            f"{1000 * first['seconds']['median']:.1f}",
            f"{1000 * last['seconds']['median']:.1f}",
            f"{last['over_floor']:.1f}",
            f"{row.details['compaction_share']['median']:.1%}",
        ]
    return cells


def draw_steps(rows: Sequence[EngineSummary]) -> "Figure":
    """Draw the rows of profile mode, one panel a batch size."""
    from matplotlib.figure import Figure

    from dynts.report.figures import label_logarithmic

    batches = sorted({row.batch for row in rows})
    figure = Figure(figsize=(5 * max(len(batches), 1.4), 4), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for batch, axes in zip(batches, panels, strict=True):
        floor: dict[int, float] = {}
        shown = [row for row in rows if row.batch == batch]
        several = len({row.budget for row in shown} - {None}) > 1
        for row in shown:
            steps = row.details["steps"]
            floor |= {step["tokens"]: 1000 * step["floor"] for step in steps}
            label = f"{row.engine}, budget {row.budget}" if several and row.budget else row.engine
            tokens = [step["tokens"] for step in steps]
            axes.plot(tokens, [1000 * step["seconds"]["median"] for step in steps], marker=".", label=label)
        lengths = sorted(floor)
        axes.plot(lengths, [floor[length] for length in lengths], color="grey", linestyle="--", label="floor")
        axes.set_title(f"batch {batch}")
        axes.set_xlabel("cached tokens a row")
        axes.set_ylabel("ms a step")
        axes.set_yscale("log")
        label_logarithmic(axes.yaxis)
    # all panels show the same engines
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure
