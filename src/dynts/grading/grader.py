"""Grade what an unknown model wrote: the comparison runs in processes of its own, which may hang or die."""

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Literal, Self

from dynts.errors import DyntsError, check_count

SECONDS = 10.0
READY = "ready\n"

GraderName = Literal["dynts", "math-verify"]
MATH_VERIFY: GraderName = "math-verify"

_Worker = subprocess.Popen[str]


class Verdict(StrEnum):
    """What a grader says of an answer; all but the first are reasons to drop a trace."""

    CORRECT = "correct"
    WRONG = "wrong_answer"
    UNGRADABLE = "ungradable"
    """There is no boxed answer, or it or the gold answer cannot be read."""
    FAILED = "grader_failed"
    """The comparison took too long, or ended the process that made it."""


_VERDICTS = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.UNGRADABLE}


class Grader:
    """Grades answers as `dynts.grading.compare.is_correct` does, and survives those that hang or crash it.

    A worker process starts with the first answer (0.5 s) and is kept; one that exceeds the limit or dies is replaced
    by the next answer. Each worker enforces the limit on itself and ends when its pipe is closed, so none outlives this
    process, however that ends. Usable from several threads at once, and in daemonic processes and scripts without a
    `__main__` guard, where `multiprocessing`, and with it every process pool (concurrent.futures, pebble), would
    refuse: workers are plain subprocesses. Linux and macOS.

    Args:
        processes: how many answers are graded at a time.
        seconds: the limit for one answer, in seconds of processor time, so that a busy or suspended machine changes no
            verdict.

    Raises:
        DyntsError: `processes` is below 1, or `seconds` is not positive.
    """

    def __init__(self, processes: int = 1, seconds: float = SECONDS) -> None:
        check_count("processes", processes, least=1)
        if not seconds > 0:
            raise DyntsError(f"seconds must be positive, got {seconds}")
        self.processes = processes
        self.seconds = seconds
        self._owner = os.getpid()
        # idle workers; None stands for one that has not started
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def grade(self, answer_text: str, gold: str, by: GraderName = "dynts") -> Verdict:
        """Compare the last boxed answer of a text with the gold answer.

        Args:
            answer_text: what the model wrote after its thinking.
            gold: the right answer, as text or LaTeX.
            by: the rules of docs/reference/grading.md, or Math-Verify alone, with the answer where Math-Verify finds
                it.

        Raises:
            DyntsError: this process is not the one that made the grader, or no worker can be started.
        """
        if os.getpid() != self._owner:
            raise DyntsError(
                f"this Grader belongs to process {self._owner}; its workers cannot be shared with process "
                f"{os.getpid()}: make one in each process"
            )
        worker = self._idle.get()
        verdict = None
        try:
            # a worker that died idle, of whatever, says nothing about this answer
            if worker is None or worker.poll() is not None:
                worker = _start(self.seconds)
            verdict = _ask(worker, answer_text, gold, by)
        finally:
            # interrupted, it may still answer this question: the next one would get that verdict
            if verdict is None or verdict is Verdict.FAILED:
                _stop(worker)
                worker = None
            self._idle.put(worker)
        return verdict

    def grade_all(self, answers: Iterable[tuple[str, str]]) -> Iterator[Verdict]:
        """Grade pairs of answer text and gold answer, in their order, `processes` at a time."""
        with ThreadPoolExecutor(self.processes) as threads:
            yield from threads.map(lambda answer: self.grade(*answer), answers)

    def close(self) -> None:
        """End the idle workers. A closed grader can be used again: it starts new ones."""
        idle = [self._idle.get() for _ in range(self._idle.qsize())]
        for worker in idle:
            _stop(worker)
            self._idle.put(None)


def _start(seconds: float) -> _Worker:
    # -P and the path: the worker has to find the modules that this process uses, and no others
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "dynts.grading.worker", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
    )
    assert worker.stdout is not None
    if worker.stdout.readline() != READY:
        _stop(worker)
        raise DyntsError(f"the grading process does not start; `python -m dynts.grading.worker {seconds}` shows why")
    return worker


def _ask(worker: _Worker, answer_text: str, gold: str, by: GraderName) -> Verdict:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(json.dumps([answer_text, gold, by]) + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return Verdict.FAILED
    line = worker.stdout.readline()
    return _VERDICTS[json.loads(line)] if line.endswith("\n") else Verdict.FAILED


def _stop(worker: _Worker | None) -> None:
    if worker is not None:
        worker.kill()
        with suppress(BrokenPipeError), worker:
            pass  # leaving closes the pipes and waits
