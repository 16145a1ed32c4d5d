"""Schedulers of SGLang for the tests: each with its model in its own process, whose event loop goes as the test says.

SGLang wants a process for each scheduler, and one that fails ends the process that started it. Here a failure is an
exception with the scheduler's traceback.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from sglang_process import Failed, Result, run_engine, run_scheduler

import dynts
from dynts.engines.settings import PluginSettings

TIMEOUT = 240
"""Seconds that a process may take for one answer."""

HAS_SGLANG = find_spec("sglang") is not None
needs_sglang = pytest.mark.skipif(not HAS_SGLANG, reason="SGLang is not installed: `make sglang` runs these")

ENVIRONMENT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "OMP_NUM_THREADS": "1",
}
"""Of every process: SGLang looks for leaks, and slots that are freed twice or still in use, after every step."""

SERVER = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "context_length": 1024,
    "max_running_requests": 8,
    "max_total_tokens": 16384,
    "watchdog_timeout": 3600,  # a test may look at a step for long; a watchdog would kill the test's process
    "log_level": "error",
}
"""Settings of every server, in SGLang's names."""


class SchedulerError(Exception):
    """Carries the traceback of a scheduler's process."""


class Scheduler:
    """A scheduler in its own process, between two steps of its event loop."""

    def __init__(self, process: Any, pipe: Any) -> None:
        self.results: list[Result] = []
        self._process, self._pipe = process, pipe
        self._new: list[tuple[Any, ...]] = []
        self._receive()

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        **options: Any,
    ) -> slice:
        """Hands over requests at the next step, and returns where in `results` they are.

        Options are fields of SGLang's request.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, Mapping) else sampling
        first = len(self.results)
        for prompt, chosen in zip(prompts, each, strict=True):
            self._new.append((len(self.results), list(prompt), dict(chosen), options))
            self.results.append(Result())
        return slice(first, len(self.results))

    def run(self, steps: int | None = None) -> None:
        """Lets the event loop make so many steps, or go on until it is idle and has looked for leaks."""
        new, self._new = self._new, []
        self._pipe.send(("run", new, steps))
        for number, result in self._receive().items():
            self.results[number] = result

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Any, **options: Any) -> list[Result]:
        """Adds requests, and runs until all are done."""
        added = self.add(prompts, sampling, **options)
        self.run()
        return self.results[added]

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Calls a module's function in the scheduler's process, with SGLang's scheduler first."""
        self._pipe.send(("call", function, arguments, named))
        return self._receive()

    @contextmanager
    def copied(self) -> Iterator[None]:
        """Talks to a copy of the process, which may be broken, and afterwards to the process as it was."""
        self._pipe.send(("copy",))
        self._receive()
        results = list(self.results)
        try:
            yield
        finally:
            self._pipe.send(("end",))
            self.results = results
            self._receive()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def _receive(self) -> Any:
        return _receive(self._pipe, self._process, TIMEOUT)


def _receive(pipe: Any, process: Any, seconds: int) -> Any:
    if not connection.wait([pipe, process.sentinel], seconds):
        raise SchedulerError(f"no answer for {seconds} seconds")
    try:
        answer = pipe.recv()
    except EOFError:
        process.join()
        raise SchedulerError(f"the process ended with exit code {process.exitcode}") from None
    if isinstance(answer, Failed):
        raise SchedulerError(answer.text)
    return answer


@contextmanager
def started(model: Path, settings: Mapping[str, str], **server: Any) -> Iterator[Scheduler]:
    """A scheduler with a model, radix cache and overlap of steps on, as SGLang has them.

    Settings are environment variables, those of the plugin and of SGLang; server is SGLang's.
    """
    here, there = multiprocessing.Pipe()
    arguments = (there, {**SERVER, "model_path": str(model), **server})
    run = multiprocessing.get_context("spawn").Process(target=run_scheduler, args=arguments)
    with mock.patch.dict(os.environ, {**ENVIRONMENT, **settings}):
        run.start()
    there.close()
    try:
        scheduler = Scheduler(run, here)
        yield scheduler
        scheduler.close()
    finally:
        run.kill()


def engine_answers(
    model: Path, settings: Mapping[str, str], prompts: Sequence[Any], sampling: Any, **server: Any
) -> Any:
    """What `sglang.Engine` answers, with its processes for requests, for texts and for each rank.

    Args:
        model: its folder.
        settings: environment variables, those of the plugin and of SGLang.
        prompts: token ids.
        sampling: parameters, of all or of each.
        server: SGLang's settings.
    """
    here, there = multiprocessing.Pipe()
    arguments = (there, {**SERVER, "model_path": str(model), **server}, list(prompts), sampling)
    run = multiprocessing.get_context("spawn").Process(target=run_engine, args=arguments)
    with mock.patch.dict(os.environ, {**ENVIRONMENT, **settings}):
        run.start()
    there.close()
    try:
        return _receive(here, run, 2 * TIMEOUT)
    finally:
        run.join(20)
        for process in [*psutil.Process(run.pid).children(recursive=True), run] if run.is_alive() else []:
            process.kill()


def budget(config: dynts.CompressionConfig, predictor: Path, **more: str) -> dict[str, str]:
    """The plugin's environment variables; more are further settings of it."""
    chosen = PluginSettings(str(predictor), config.budget, config.local_window, config.retention_ratio, **more)
    return chosen.to_environment()


def sampling(tokens: int, **options: Any) -> dict[str, Any]:
    """Drawn at random, to a given length."""
    return {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True, **options}
