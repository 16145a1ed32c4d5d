"""Schedulers of SGLang for the tests: each with its model in its own process, whose event loop goes as the test says.

SGLang wants a process for each scheduler, and one that fails ends the process that started it. Here a failure is an
exception with the scheduler's traceback.
"""

import multiprocessing
import os
import traceback
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import dynts
from dynts.engines.settings import PluginSettings

TIMEOUT = 120
"""Seconds that a scheduler may take for one answer."""

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


@dataclass
class Result:
    """What SGLang has sent about a request so far.

    Attributes:
        tokens: that it generated.
        logprobs: of each.
        top: of the likeliest five in its place.
        prompt_logprobs: of the prompt's tokens, where they were asked for.
        cached: tokens of the prompt that the radix cache had.
        retractions: how often it was retracted.
        messages: how many times SGLang sent something.
        finish: why it ended, in SGLang's words; None as long as it runs.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    cached: int = 0
    retractions: int = 0
    messages: int = 0
    finish: dict[str, Any] | None = None


class SchedulerError(Exception):
    """Carries the traceback of a scheduler's process."""


@dataclass
class _Failed:
    text: str


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
        if not connection.wait([self._pipe, self._process.sentinel], TIMEOUT):
            raise SchedulerError(f"no answer for {TIMEOUT} seconds")
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SchedulerError(f"the process ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, _Failed):
            raise SchedulerError(answer.text)
        return answer


@contextmanager
def started(model: Path, settings: Mapping[str, str], **server: Any) -> Iterator[Scheduler]:
    """A scheduler with a model, radix cache and overlap of steps on, as SGLang has them.

    Settings are environment variables, those of the plugin and of SGLang; server is SGLang's.
    """
    here, there = multiprocessing.Pipe()
    run = multiprocessing.get_context("spawn").Process(target=_run, args=(there, {"model_path": str(model), **server}))
    with mock.patch.dict(os.environ, {**ENVIRONMENT, **settings}):
        run.start()
    there.close()
    try:
        scheduler = Scheduler(run, here)
        yield scheduler
        scheduler.close()
    finally:
        run.kill()


def budget(config: dynts.CompressionConfig, predictor: Path, **more: str) -> dict[str, str]:
    """The plugin's environment variables; more are further settings of it."""
    chosen = PluginSettings(str(predictor), config.budget, config.local_window, config.retention_ratio, **more)
    return chosen.to_environment()


def sampling(tokens: int, **options: Any) -> dict[str, Any]:
    """Drawn at random, to a given length."""
    return {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True, **options}


# --- in the scheduler's process


class _Driver:
    """Stands between the event loop and the test: gives it requests, and gathers what it sends."""

    def __init__(self, pipe: Any, scheduler: Any) -> None:
        self.pipe = pipe
        self.scheduler = scheduler
        self.results: dict[int, Result] = {}
        self.left: int | None = 1  # steps until it is the test's turn, None for until all is done

    def recv_requests(self, local_reqs: Sequence[Any] | None = None) -> list[Any]:
        """Called by the event loop at the beginning of each step."""
        arriving = list(local_reqs or [])
        if self.left is not None:
            self.left -= 1
        elif self.scheduler.is_fully_idle():
            self.left = 1  # in this step SGLang looks for leaks
        if self.left == 0:
            self.pipe.send(self.results)
            self.results = {number: result for number, result in self.results.items() if result.finish is None}
        while self.left == 0:
            match self.pipe.recv():
                case "call", function, arguments, named:
                    self.pipe.send(function(self.scheduler, *arguments, **named))
                case "run", requests, steps:
                    arriving += [self._request(*request) for request in requests]
                    self.left = steps
                case ("copy",):
                    self._copy()
                case ("end",):
                    os._exit(0)
        return arriving

    def _copy(self) -> None:
        """Lets a copy of the process go on, and waits for its end."""
        if copy := os.fork():
            _, broken = os.waitpid(copy, 0)
            if broken:
                self.pipe.recv()  # the word to end, which the copy has not lived to hear
        self.pipe.send(None)

    def _request(self, number: int, prompt: list[int], sampling: dict[str, Any], options: dict[str, Any]) -> Any:
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        chosen = SamplingParams(**sampling)
        chosen.normalize(self.scheduler.tokenizer)
        chosen.verify(self.scheduler.model_config.vocab_size)
        self.results[number] = Result()
        usual = {
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": 5,
            "token_ids_logprob": None,
            "stream": False,
            "input_text": None,
            "input_embeds": None,
            "mm_inputs": None,
            "token_type_ids": None,
        }
        return TokenizedGenerateReqInput(
            rid=str(number), input_ids=array("q", prompt), sampling_params=chosen, **{**usual, **options}
        )

    def send_output(self, output: Any, request: Any = None) -> None:
        """Called by the scheduler with a batch of outputs, with the word that a request is aborted, and others."""
        if type(output).__name__ == "AbortReq":
            self.results[int(output.rid)].finish = output.finished_reason or {"type": "abort"}
        if type(output).__name__ != "BatchTokenIDOutput":
            return
        for place, rid in enumerate(output.rids):
            result = self.results[int(rid)]
            result.messages += 1
            result.tokens += output.output_ids[place]
            result.cached = output.cached_tokens[place]
            result.retractions = output.retraction_counts[place]
            result.finish = output.finished_reasons[place]
            if output.output_token_logprobs_val:
                result.prompt_logprobs += output.input_token_logprobs_val[place]
                result.logprobs += output.output_token_logprobs_val[place]
                result.top += [
                    dict(zip(tokens, values, strict=True))
                    for tokens, values in zip(
                        output.output_top_logprobs_idx[place], output.output_top_logprobs_val[place], strict=True
                    )
                ]


def _run(pipe: Any, server: dict[str, Any]) -> None:
    """The process: what SGLang's `run_scheduler_process` does, but for its signals to the process that started it."""
    try:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import scheduler as module
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        arguments = ServerArgs(**{**SERVER, **server})
        arguments.resolve_once()
        arguments.check_server_args()
        ports = PortArgs.init_new(arguments)
        publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
        module.configure_scheduler_process(arguments, 0)
        scheduler = module.Scheduler(arguments, ports)
        if refusal := getattr(scheduler, "refusal", None):
            raise refusal
        scheduler.request_receiver = driver = _Driver(pipe, scheduler)
        scheduler.ipc_channels.send_to_tokenizer.send_output = driver.send_output
        scheduler.ipc_channels.send_to_detokenizer.send_output = driver.send_output
        scheduler.run_event_loop()
    except EOFError:  # the test is done
        os._exit(0)  # SGLang's threads and sockets would wait for others
    except BaseException:
        pipe.send(_Failed(traceback.format_exc()))
        os._exit(1)
