"""Notices models whose thinking seems never to end, which usually write other think markers than were looked for."""

import threading
from collections.abc import Callable

FIRST = 8
"""Finished samples after which it is said."""


class ClosingWatch:
    """Says once, and early, that the first finished samples closed no thinking; from any thread.

    Args:
        say: how to say it.
        advice: what to do about it.

    Attributes:
        said: whether it was said.
    """

    def __init__(self, say: Callable[[str], object], advice: str) -> None:
        self.say = say
        self.advice = advice
        self.finished = 0
        self.closed = False
        self.said = False
        self._lock = threading.Lock()

    def note(self, finished: bool, closed: bool) -> None:
        """A sample: whether its turn was ended by the model, and whether its thinking was closed."""
        with self._lock:
            self.closed = self.closed or closed
            self.finished += finished
            if self.finished == FIRST:
                self._tell()

    def conclude(self) -> None:
        """There are no more samples."""
        with self._lock:
            if 0 < self.finished < FIRST:
                self._tell()
                self.finished = FIRST

    def _tell(self) -> None:
        if not self.closed:
            self.said = True
            self.say(
                f"WARNING: none of the first {self.finished} answers that the model finished closes its thinking, so "
                f"nothing in them counts as an answer: {self.advice}"
            )
