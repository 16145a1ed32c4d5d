"""Step time against cached tokens, engine by engine, over the floor."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dynts.bench.report import Row
from dynts.figures import save_figure


def draw_steps(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows of profile mode, one panel a batch size; the ending of `path` chooses the format."""
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
    # all panels show the same engines
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    save_figure(figure, path)
