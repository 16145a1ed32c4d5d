"""What runs in the processes of `sglang_engines`: SGLang's scheduler with its event loop driven, or its engine."""

import os
import traceback
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


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


@dataclass
class Failed:
    """The traceback of a process."""

    text: str


class Driver:
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


def run_scheduler(pipe: Any, server: dict[str, Any]) -> None:
    """The process: what SGLang's `run_scheduler_process` does, but for its signals to the process that started it."""
    try:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        from sglang.srt.managers import scheduler as module
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import PortArgs, ServerArgs

        arguments = ServerArgs(**server)
        arguments.resolve_once()
        arguments.check_server_args()
        ports = PortArgs.init_new(arguments)
        publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
        module.configure_scheduler_process(arguments, 0)
        scheduler = module.Scheduler(arguments, ports)
        if refusal := getattr(scheduler, "refusal", None):
            raise refusal
        scheduler.request_receiver = driver = Driver(pipe, scheduler)
        scheduler.ipc_channels.send_to_tokenizer.send_output = driver.send_output
        scheduler.ipc_channels.send_to_detokenizer.send_output = driver.send_output
        scheduler.run_event_loop()
    except EOFError:  # the test is done
        os._exit(0)  # SGLang's threads and sockets would wait for others
    except BaseException:
        pipe.send(Failed(traceback.format_exc()))
        os._exit(1)


def run_engine(pipe: Any, server: dict[str, Any], prompts: list[Any], sampling: Any) -> None:
    """The process that starts an engine, which the engine would end where it fails."""
    try:
        from sglang.srt.entrypoints.engine import Engine

        engine = Engine(**server)
        pipe.send(engine.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True, top_logprobs_num=5))
        engine.shutdown()
    except BaseException:
        pipe.send(Failed(traceback.format_exc()))
