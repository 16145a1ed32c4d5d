"""Keep grading processes from one test to the next: each spends a second on imports, and most tests collect or
label."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dynts.grading import grader
from dynts.grading.grader import Grader

_START, _CLOSE = grader._start, Grader.close
_kept: dict[float, list[grader._Worker]] = {}


def _start(seconds: float) -> grader._Worker:
    while workers := _kept.get(seconds):
        worker = workers.pop()
        if worker.poll() is None:
            return worker
        grader._stop(worker)
    return _START(seconds)


def _close(self: Grader) -> None:
    for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
        if worker is not None:
            _kept.setdefault(self.seconds, []).append(worker)
        self._idle.put(None)


def _end_kept() -> None:
    while _kept:
        for worker in _kept.popitem()[1]:
            grader._stop(worker)


@contextmanager
def keep_graders() -> Iterator[None]:
    """Inside this context a closed `Grader` leaves its idle workers to the next one with the same limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grader, "_start", _start)
        patch.setattr(Grader, "close", _close)
        yield
    _end_kept()


@contextmanager
def own_graders() -> Iterator[None]:
    """Inside this context graders are as they are for users: they start and end their workers."""
    _end_kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grader, "_start", _START)
        patch.setattr(Grader, "close", _CLOSE)
        yield
