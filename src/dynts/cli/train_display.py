"""What `dynts train` shows: one live line on a terminal, plain lines elsewhere, and tables at the end."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dynts.store.progress import quiet


class TrainDisplay:
    """A context to train in.

    Args:
        epochs: of a training.
        visible: False shows nothing at all.
    """

    def __init__(self, epochs: int, visible: bool) -> None:
        self.epochs = epochs
        self.progress_console, self.output = (Console(stderr=error, quiet=not visible) for error in (True, False))
        self.silent = quiet()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("left"), TimeRemainingColumn())
        shown = visible and self.progress_console.is_terminal and not self.silent
        self.live = Progress(*columns, console=self.progress_console, disable=not shown, transient=True)
        self.task = self.live.add_task("reading", total=None)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, done: int, steps: int, loss: float) -> None:
        """Show where the training is after an optimizer step.

        Args:
            done: steps done.
            steps: steps of the whole training.
            loss: of this step.
        """
        epoch = -(-done * self.epochs // steps)
        # steps that another run did are no measure of this one's speed
        if self.live.tasks[0].total is None or done < self.live.tasks[0].completed:
            self.live.reset(self.task, total=steps, completed=done)
        text = f"epoch {epoch}/{self.epochs}  step {done}/{steps}  loss {loss:.4f}"
        self.live.update(self.task, completed=done, description=text)

    def epoch(self, epoch: int, loss: float, metrics: dict[str, float]) -> None:
        """Print how an epoch went.

        Args:
            epoch: its number, from 1.
            loss: its mean.
            metrics: on the held-out traces.
        """
        figures = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        text = f"epoch {epoch}/{self.epochs}  loss {loss:.4f}  held-out: {figures}"
        if not self.silent:
            self.progress_console.print(text, highlight=False, soft_wrap=True)

    def interrupted(self, work: Path) -> None:
        """Say what Ctrl-C has left in `work`, the folder of the checkpoints."""
        kept = f"continue from the last checkpoint, kept in {work}" if work.exists() else "start over"
        text = f"interrupted; run the same command again to {kept}"
        self.progress_console.print(f"dynts: {text}", highlight=False, soft_wrap=True)

    def table(self, title: str, metrics: dict[str, dict[str, float]]) -> None:
        """Print a table of metrics.

        Args:
            title: above it.
            metrics: by row, then by name.
        """
        names = list(next(iter(metrics.values())))
        table = Table(title=title)
        table.add_column(no_wrap=True)
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for row, values in metrics.items():
            table.add_row(row.replace("_", " "), *(f"{values[name]:.3f}" for name in names))
        self.output.print(table)

    def line(self, text: str) -> None:
        """Print a line of the result."""
        self.output.print(text, soft_wrap=True, highlight=False)
