"""What vLLM's and SGLang's engines share offline: one budget at a time, and places that are filled as they get free."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

from transformers import GenerationConfig, PreTrainedTokenizerBase

from dynts.cache.lengths import cache_lengths
from dynts.chat.prompts import Prompt, encode_question
from dynts.chat.written import decode_text
from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.decode.checkpoint import say_once
from dynts.engines.engine import Completion, Request
from dynts.errors import DyntsError
from dynts.extras import need

_NOT_OF_THE_TEXT = {
    *("temperature", "top_p", "top_k", "do_sample", "max_length", "max_new_tokens", "stop_strings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("transformers_version", "_from_model_config"),
}
"""Settings of a generation config that options give, that the engines read themselves, or that change no text."""


@dataclass(frozen=True, slots=True)
class OfflineSpec(ABC):
    """How to start an engine that has a scheduler and kernels of its own.

    Args:
        source: the model; without a GGUF file, and on the engine's own devices.
        sampling: how to draw tokens; its seed is not used, each request has one.
        arms: all that requests will ask for.
        batch: most requests in the engine at a time.
        engine_args: further settings by the engine's own names.

    Attributes:
        title: what the engine is called.
        package: its import name, its extra of dynts, and what `--engine` calls it.
        methods: those that it has.

    Raises:
        DyntsError: a method that the engine does not have, or it is not installed.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]

    source: ModelSource
    sampling: Sampling
    arms: tuple[Arm[str], ...]
    batch: int
    engine_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen = f"--engine {self.package}"
        *others, last = self.methods
        for arm in self.arms:
            if arm.method.name not in self.methods:
                raise DyntsError(
                    f"{chosen} takes the methods {', '.join(others)} and {last}, got {type(arm.method).__name__}: "
                    "use --engine transformers"
                )
            if arm.keeps_question:
                raise DyntsError(
                    f"{chosen} has dynts-all without --protect-question only: drop it, or use --engine transformers"
                )
        need(self.package, self.package, chosen)

    @abstractmethod
    def start(self) -> "OfflineEngine":
        """Look at what the engine is asked for; the model is loaded with the first request."""

    def followed(self, config: GenerationConfig, names: Mapping[str, str]) -> dict[str, Any]:
        """Return what the engine follows of a checkpoint's generation config, by its own names.

        A line says what it does not follow.

        Args:
            config: the checkpoint's.
            names: what the engine calls the settings that it has, by their names in the config.
        """
        found = {theirs: getattr(config, ours) for ours, theirs in names.items() if getattr(config, ours) is not None}
        said = {name for name, value in config.to_diff_dict().items() if value not in (None, False, 0, 1)}
        if left_out := sorted(said - names.keys() - _NOT_OF_THE_TEXT):
            say_once(f"dynts: {self.title} does not follow {', '.join(left_out)} of the checkpoint's generation config")
        return found


class Output(NamedTuple):
    """What an engine wrote on a request that has ended.

    Attributes:
        id: of the request.
        token_ids: the token that ends its turn included.
        finished: whether it ended its turn before the limit of new tokens.
        at_text: whether a stop string ended it, so that no token of its end is to be left out.
    """

    id: str
    token_ids: Sequence[int]
    finished: bool
    at_text: bool


class OfflineEngine(ABC):
    """An engine that has one budget: a request of another arm ends the one there is, and starts its own.

    Attributes:
        tokenizer: the model's, from `load` on.
        bytes_per_token: of keys and values, likewise; None where it is not known.
    """

    tokenizer: PreTrainedTokenizerBase
    bytes_per_token: int | None

    def __init__(self, spec: OfflineSpec) -> None:
        self.spec = spec
        self.arm: Arm[str] | None = None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Keep up to `batch` requests of the same arm in the engine; see `Engine`."""
        for arm, group in groupby(requests, key=attrgetter("arm")):
            if arm != self.arm:
                self.shut_down()
                self.load(arm)
                self.arm = arm
            yield from self._work(group, arm)

    def shut_down(self) -> None:
        """End the engine with its processes, if there is one, and free what it held."""
        if self.arm is not None:
            self.arm = None
            self.end()

    @abstractmethod
    def load(self, arm: Arm[str]) -> None:
        """Start an engine that decodes by an arm."""

    @abstractmethod
    def end(self) -> None:
        """End the engine that `load` started."""

    @abstractmethod
    def add(self, request: Request, ids: list[int]) -> None:
        """Hand a request to the engine.

        Args:
            request: it.
            ids: its prompt.
        """

    @abstractmethod
    def work(self) -> list[Output]:
        """Let the engine work for a while, and return what has ended."""

    @abstractmethod
    def abort(self, names: Sequence[str]) -> None:
        """Drop requests that nobody waits for any longer."""

    def _work(self, requests: Iterator[Request], arm: Arm[str]) -> Iterator[Completion]:
        """One run of the engine, which never stands still between its first request and its last."""
        running: dict[str, tuple[Request, Prompt, float]] = {}
        exhausted = False
        batch, started = uuid.uuid4().hex, time.perf_counter()
        try:
            while True:
                while not exhausted and len(running) < self.spec.batch:
                    request = next(requests, None)
                    if request is None:
                        exhausted = True
                    else:
                        running[request.id] = (request, self._add(request, arm), time.perf_counter())
                if not running:
                    return
                ended = self.work()
                now = time.perf_counter()
                for written in ended:
                    request, prompt, joined = running.pop(written.id)
                    yield self._completion(request, prompt, written, now - joined, batch, now - started)
        finally:
            if running:
                self.abort(list(running))

    def _add(self, request: Request, arm: Arm[str]) -> Prompt:
        prompt = encode_question(self.tokenizer, request.problem.question, self.spec.source.chat)
        if arm.schedule is not None:
            arm.schedule.check_question(len(prompt.ids))
        self.add(request, prompt.ids)
        return prompt

    def _completion(
        self, request: Request, prompt: Prompt, written: Output, seconds: float, batch: str, run_seconds: float
    ) -> Completion:
        ids = written.token_ids
        end = ids[-1:] if written.finished and not written.at_text else ()
        format = self.spec.source.chat.format(self.tokenizer)
        lengths = cache_lengths(len(prompt.ids), len(ids), request.arm.schedule)
        return Completion(
            request,
            decode_text(self.tokenizer, ids, end, format),
            written.finished,
            prompt.ids,
            ids,
            seconds,
            batch,
            run_seconds,
            lengths,
            None if self.bytes_per_token is None else self.bytes_per_token * lengths.peak,
            format,
            prompt.thinks,
        )
