"""Collect with SGLang, offline: continuous batching, no server."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any, ClassVar

import torch

from dynts.decode.arm import Arm
from dynts.decode.checkpoint import say_once
from dynts.engines.engine import Request
from dynts.engines.offline import OfflineEngine, OfflineSpec, Output
from dynts.engines.settings import PluginSettings
from dynts.engines.sglang.refusals import check_method
from dynts.engines.sglang.settings import environment
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import DynTS, Full
from dynts.models import load_config, load_generation_config, load_tokenizer
from dynts.models.shape import ModelShape

_THEIR_NAMES = {"min_new_tokens": "min_new_tokens"}
"""Settings of a generation config, and what SGLang calls them.

Its repetition penalty is another one, which leaves the prompt out, and with seeds it has no min_p.
"""
_SHUTDOWN_SECONDS = 90
"""For an engine's processes to end by themselves: SGLang gives its own 60."""


@dataclass(frozen=True, slots=True)
class SglangSpec(OfflineSpec):
    """How to start a `SglangEngine`; engine_args are fields of `ServerArgs`, such as context_length."""

    title: ClassVar[str] = "SGLang"
    package: ClassVar[str] = "sglang"
    methods: ClassVar[tuple[str, ...]] = (Full.name, DynTS.name)

    def start(self) -> "SglangEngine":
        """Look at the predictors; the model is loaded with the first request."""
        return SglangEngine(self)

    def settings(self, arm: Arm[str]) -> PluginSettings | None:
        """Return what the plugin is told; None without a budget."""
        return None if arm.schedule is None else PluginSettings.of(arm, self.source.chat)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of SGLang's `Engine`."""
        return {
            "model_path": self.source.name,
            "revision": self.source.revision,
            "dtype": self.source.dtype or "auto",
            "max_running_requests": self.batch,
            "enable_deterministic_inference": self.sampling.temperature > 0 and self._on_accelerator(),
            **self.engine_args,
        }

    def _on_accelerator(self) -> bool:
        return self.engine_args.get("device", "cpu" if not torch.accelerator.is_available() else None) != "cpu"


class SglangEngine(OfflineEngine):
    """SGLang's `Engine`, in a process of its own.

    Args:
        spec: how to start it.

    Raises:
        DyntsError: a predictor cannot be read, is for another model, or does not serve the method.
        UnsupportedError: the plugin does not support the method.
    """

    spec: SglangSpec

    def __init__(self, spec: SglangSpec) -> None:
        super().__init__(spec)
        self.tokenizer = load_tokenizer(spec.source)
        config = load_config(spec.source)
        for arm in spec.arms:
            if settings := spec.settings(arm):
                check_method(settings)
                settings.resolve(config)
        try:
            self.shape: ModelShape | None = ModelShape.of(config)
        except UnsupportedError:
            self.shape = None
        generation = load_generation_config(spec.source)
        self.parameters = {
            "temperature": spec.sampling.temperature,
            "top_p": spec.sampling.top_p,
            "top_k": spec.sampling.top_k,
            "max_new_tokens": spec.sampling.max_new_tokens,
            **({"stop": generation.stop_strings} if generation.stop_strings else {}),
            **spec.followed(generation, _THEIR_NAMES),
        }

    def load(self, arm: Arm[str]) -> None:
        """Start an engine that decodes by an arm."""
        arguments = self.spec.arguments()
        if self.spec.sampling.temperature and not arguments["enable_deterministic_inference"]:
            say_once(
                "dynts: SGLang draws by the requests' seeds with enable_deterministic_inference only, which CPUs do "
                "not have: a sample depends on what was drawn before"
            )
        budgets = [settings.to_environment() for other in self.spec.arms if (settings := self.spec.settings(other))]
        settings = self.spec.settings(arm)
        self.pipe, there = Pipe()
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dynts.engines.sglang.engine_process", str(there.fileno())],
                pass_fds=[there.fileno()],
                env=environment(settings),
                # ended by the pipe, and not by an interrupt that this process may handle
                start_new_session=True,
            )
        self.pipe.send((arguments, None if settings is None else settings.budget, budgets))
        (itemsize,) = self._receive()
        self.bytes_per_token = None if self.shape is None or not itemsize else self.shape.kv_bytes_per_token(itemsize)

    def end(self) -> None:
        """End the engine that `load` started."""
        self.pipe.close()
        try:
            self.process.wait(_SHUTDOWN_SECONDS)
        finally:
            self.process.kill()

    def add(self, request: Request, ids: list[int]) -> None:
        """Hand a request to the engine.

        Args:
            request: it.
            ids: its prompt.

        Raises:
            DyntsError: the engine has ended.
        """
        try:
            self.pipe.send((request.id, ids, {**self.parameters, "sampling_seed": request.sampling_seed}))
        except ConnectionError as error:
            raise self._ended() from error

    def work(self) -> list[Output]:
        """Wait for a request to end, and return all that have ended by then."""
        ended = [self._receive()]
        while self.pipe.poll():
            ended.append(self._receive())
        return [
            Output(name, ids, reason["type"] == "stop", isinstance(reason.get("matched"), str))
            for name, ids, reason in ended
        ]

    def abort(self, names: Sequence[str]) -> None:
        """Drop requests that nobody waits for any longer, and the engine with them."""
        self.shut_down()

    def _receive(self) -> Any:
        """The engine's next message.

        Raises:
            DyntsError: what went wrong.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error
        if isinstance(message, str):
            raise DyntsError(message)
        return message

    def _ended(self) -> DyntsError:
        return DyntsError(f"SGLang's engine has ended (exit code {self.process.wait()}); see its error above")
