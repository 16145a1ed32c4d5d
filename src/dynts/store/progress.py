"""How far a long job is: one live display on a terminal, plain lines elsewhere."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

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


class Display:
    """Shows a tally on standard error while it changes, unless progress is not to be shown, see `quiet`."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(stderr=True)
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        shown = self.console.is_terminal and not quiet()
        self._live = Progress(*columns, console=self.console) if shown else None
        self._task = None if self._live is None else self._live.add_task(title, total=None, text="")
        self._printed = time.monotonic()
        self._counted = Tally(total=0)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, tally: Tally) -> None:
        """Show this."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, total=tally.total, completed=tally.done, text=tally.describe())
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
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)


def describe_counts(counts: Mapping[str, int]) -> str:
    """Such as "unfinished 3, wrong_answer 5"."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items() if count) or "none"
