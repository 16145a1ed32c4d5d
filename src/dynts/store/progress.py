"""How far a long job is: one live display on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

_EVERY = 30.0
"""Seconds between plain lines."""


@dataclass(slots=True)
class Tally:
    """Counts of a job.

    Args:
        total: traces wanted.
        done: traces there are, those of earlier runs included.
        correct: of these, None where the job does not grade.
        dropped: how many are not fit for training, by reason.
        tokens: tokens of this run.
        started_with: traces there were when this run began.
        started: when this run began, in seconds since the epoch.
    """

    total: int
    done: int = 0
    correct: int | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    started_with: int = 0
    started: float = field(default_factory=time.time)

    def add(self, correct: bool, reason: str | None) -> None:
        """Count a graded trace, and the reason to drop it, if there is one.

        Args:
            correct: whether its answer is right.
            reason: to drop it.
        """
        self.done += 1
        self.correct = (self.correct or 0) + correct
        if reason is not None:
            self.dropped[reason] += 1

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return {
            "total": self.total,
            "done": self.done,
            "correct": self.correct,
            "dropped": dict(self.dropped),
            "tokens": self.tokens,
            "started_with": self.started_with,
        }

    def describe(self, now: float | None = None) -> str:
        """Return everything but the number of traces done, in one line."""
        seconds = max((now or time.time()) - self.started, 1e-9)
        made = self.done - self.started_with
        parts = [] if self.correct is None else [f"{self.correct} correct"]
        parts += [f"dropped: {describe_counts(self.dropped)}"] if self.dropped else []
        parts += [f"{self.tokens / seconds:.0f} tokens/s"] if self.tokens else []
        if made and self.done < self.total:
            left = timedelta(seconds=round((self.total - self.done) * seconds / made))
            parts.append(f"{left} left")
        return "; ".join(parts)


def quiet() -> bool:
    """Return whether progress is not to be shown: the level of the logger "dynts" is above INFO."""
    return logging.getLogger("dynts").level > logging.INFO


class _Count(MofNCompleteColumn):
    """How many of how many; nothing where nobody knows."""

    def render(self, task: Task) -> Text:
        """Return the cell of a bar."""
        return Text() if task.total is None else super().render(task)


class _Screen:
    """The bars of this process: one live display on the terminal, however many bars are open within each other."""

    def __init__(self) -> None:
        self.console: Console | None = None
        self.bars: Progress | None = None

    def open(self, console: Console) -> bool:
        """Start the display, and return whether it had not been started before."""
        if self.bars is not None:
            return False
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Count(), TimeElapsedColumn())
        # what is written to a file or pipe must go there, not to the terminal
        plain = not sys.stdout.isatty()
        self.bars = Progress(
            *columns, TextColumn("{task.fields[text]}", markup=False), console=console, redirect_stdout=not plain
        )
        self.bars.start()
        return True

    def close(self) -> None:
        """End the display; bars that are still there stay on the terminal."""
        assert self.bars is not None
        self.bars.live.transient = not self.bars.tasks
        self.bars.stop()
        self.bars = None


_screen = _Screen()


class Bar:
    """A line of the display that says how far something is; one that is not shown takes the same calls."""

    def __init__(self, bars: Progress | None = None, task: TaskID | None = None) -> None:
        self._bars, self._task = bars, task

    @property
    def shown(self) -> bool:
        """Whether it is on a terminal."""
        return self._bars is not None

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show this.

        Args:
            done: how many are done.
            total: how many there are, None for as many as before.
            text: behind the figures.
        """
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, text=text)

    def advance(self) -> None:
        """Count one more."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the bars that are opened within on standard error, if that is a terminal.

    Commands enter this. Elsewhere bars show where a `Display` is, and nothing without one: a library is quiet.
    """
    console = Console(stderr=True)
    before, _screen.console = _screen.console, console if console.is_terminal else None
    try:
        yield
    finally:
        _screen.console = before


@contextmanager
def bar(title: str, total: int | None = None, *, kept: bool = False) -> Iterator[Bar]:
    """Show a bar while something runs, in the display that is open already if there is one.

    Args:
        title: what runs.
        total: how many there are of what it counts; None where it counts nothing.
        kept: leave it on the terminal when it ends.
    """
    if _screen.bars is None and (_screen.console is None or quiet()):
        yield Bar()
        return
    first = _screen.console is not None and _screen.open(_screen.console)
    bars = _screen.bars
    assert bars is not None
    task = bars.add_task(title, total=total, text="")
    try:
        yield Bar(bars, task)
    finally:
        if not kept:
            bars.remove_task(task)
        if first:
            _screen.close()


@contextmanager
def paused() -> Iterator[None]:
    """Take the bars off the terminal while something else writes to it."""
    bars = _screen.bars
    if bars is None:
        yield
        return
    bars.live.transient = True
    bars.stop()
    try:
        yield
    finally:
        bars.start()


class Display:
    """Shows a tally on standard error while it changes, unless progress is not to be shown, see `quiet`."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._task = TaskID(0)
        self._first = False
        self._printed = time.monotonic()
        self._counted = Tally(total=0)

    def __enter__(self) -> Self:
        if self.console.is_terminal and not quiet():
            self._first = _screen.open(self.console)
            self._bars = _screen.bars
            assert self._bars is not None
            self._task = self._bars.add_task(self.title, total=None, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._first:
            _screen.close()
        self._bars = None

    def update(self, tally: Tally) -> None:
        """Show this."""
        if self._bars is not None:
            self._bars.update(self._task, total=tally.total, completed=tally.done, text=tally.describe())
        elif time.monotonic() - self._printed >= _EVERY and not quiet():
            self._printed = time.monotonic()
            self.say(f"{self.title}: {tally.done} of {tally.total} traces; {tally.describe()}")

    def count(self, done: int, total: int) -> None:
        """Show so many traces of so many; those of the first call are taken for earlier runs'.

        Args:
            done: how many are done.
            total: how many there are.
        """
        if not self._counted.total:
            self._counted.started_with = done
        self._counted.done, self._counted.total = done, total
        self.update(self._counted)

    def say(self, text: str) -> None:
        """Show a line of its own."""
        console = self.console if self._bars is None else self._bars.console
        console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def describe_counts(counts: Mapping[str, int]) -> str:
    """Such as "unfinished 3, wrong_answer 5"."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items() if count) or "none"
