"""Collect with vLLM, offline: continuous batching, no server."""

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from transformers import GenerationConfig

from dynts.cache.lengths import cache_lengths
from dynts.chat.prompts import Prompt, encode_question
from dynts.chat.written import decode_text
from dynts.config import ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.decode.checkpoint import say_once
from dynts.engines.engine import FULL_CACHE, Completion, Request
from dynts.engines.settings import PluginSettings
from dynts.engines.vllm.settings import KEY
from dynts.errors import DyntsError, UnsupportedError
from dynts.extras import need
from dynts.methods import DynTS, DynTSAll, Full
from dynts.models import load_generation_config
from dynts.models.shape import ModelShape

_THEIR_NAMES = {"repetition_penalty": "repetition_penalty", "min_p": "min_p", "min_new_tokens": "min_tokens"}
"""Settings of a generation config, and what vLLM calls them."""
_NOT_OF_THE_TEXT = {
    *("temperature", "top_p", "top_k", "do_sample", "max_length", "max_new_tokens", "stop_strings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("transformers_version", "_from_model_config"),
}
"""Settings that options give, that vLLM reads itself, or that change no text."""
_SHUTDOWN_SECONDS = 30
"""For an engine's processes to end by themselves, before vLLM kills them."""


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """How to start a `VllmEngine`.

    Args:
        source: the model; without a GGUF file, and on vLLM's own devices.
        sampling: how to draw tokens; its seed is not used, each request has one.
        arms: all that requests will ask for.
        batch: most requests in the engine at a time.
        engine_args: further fields of vLLM's `EngineArgs`, such as tensor_parallel_size and max_model_len.

    Raises:
        DyntsError: a method that vLLM does not have, or vllm is not installed.
    """

    source: ModelSource
    sampling: Sampling
    arms: tuple[Arm[str], ...]
    batch: int
    engine_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm.method.name not in (Full.name, DynTS.name, DynTSAll.name):
                raise DyntsError(
                    f"--engine vllm takes the methods full, dynts and dynts-all, got {type(arm.method).__name__}: "
                    "use --engine transformers"
                )
            if arm.keeps_question:
                raise DyntsError(
                    "--engine vllm has dynts-all without --protect-question only: drop it, or use --engine transformers"
                )
        need("vllm", "vllm", "--engine vllm")

    def start(self) -> "VllmEngine":
        """Look at what vLLM is asked for; the model is loaded with the first request."""
        return VllmEngine(self)

    def arguments(self, arm: Arm[str]) -> Any:
        """vLLM's `EngineArgs`.

        Raises:
            DyntsError: vLLM does not know one of the engine arguments.
        """
        from vllm import EngineArgs
        from vllm.platforms import current_platform

        additional = self.engine_args.get("additional_config") or {}
        settings = None if arm.schedule is None else PluginSettings.of(arm, self.source.chat)
        arguments: dict[str, Any] = {
            "model": self.source.name,
            "revision": self.source.revision,
            "tokenizer_revision": self.source.revision,
            "dtype": self.source.dtype or "auto",
            "max_num_seqs": self.batch,
            # a prompt that competes has to be read each time
            **({} if settings is None or settings.policy.protect_question else {"enable_prefix_caching": False}),
            # with a chunked prompt, requests with a seed of their own make vLLM 0.32 fail on CPUs
            **({"enable_chunked_prefill": False} if current_platform.is_cpu() else {}),
            **self.engine_args,
            # said even where there is no budget, for the environment could ask for one
            "additional_config": {**additional, KEY: settings and asdict(settings)},
        }
        try:
            return EngineArgs(**arguments)
        except TypeError as error:
            raise DyntsError(f"vLLM refuses the engine arguments {self.engine_args}: {error}") from error


class VllmEngine:
    """vLLM's `LLMEngine`, stepped here, because `LLM.generate` gives nothing back before its last request ends.

    An engine of vLLM has one budget. A request of another arm ends the engine there is, and starts its own.

    Raises:
        DyntsError: vLLM does not know one of the engine arguments, or a predictor does not fit the model.
        UnsupportedError: the plugin does not support what the engine is asked for.
    """

    def __init__(self, spec: VllmSpec) -> None:
        # all at once, so that what does not fit shows before hours of work on what does
        for arm in spec.arms:
            spec.arguments(arm).create_engine_config()
        self.spec = spec
        self.checkpoint = _followed(load_generation_config(spec.source))
        self.engine: Any = None
        self.arm = FULL_CACHE

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Keep up to `batch` requests of the same arm in the engine; see `Engine`."""
        for arm, group in groupby(requests, key=attrgetter("arm")):
            if self.engine is None or arm != self.arm:
                self.shut_down()
                self._load(arm)
            yield from self._work(group)

    def shut_down(self) -> None:
        """End vLLM's engine with its processes, if there is one, and free what it held."""
        if self.engine is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.engine_core.shutdown(timeout=_SHUTDOWN_SECONDS)
        self.engine = None
        # of an engine that has no process of its own
        cleanup_dist_env_and_memory()

    def _load(self, arm: Arm[str]) -> None:
        from vllm import LLMEngine

        self.engine = LLMEngine.from_engine_args(self.spec.arguments(arm))
        self.arm = arm
        self.tokenizer = self.engine.get_tokenizer()
        self.bytes_per_token = _bytes_per_token(self.engine.vllm_config)

    def _work(self, requests: Iterator[Request]) -> Iterator[Completion]:
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
                        running[request.id] = (request, self._add(request), time.perf_counter())
                if not running:
                    return
                outputs = [output for output in self.engine.step() if output.finished]
                now = time.perf_counter()
                for output in outputs:
                    request, prompt, joined = running.pop(output.request_id)
                    written = output.outputs[0]
                    yield self._completion(request, prompt, written, now - joined, batch, now - started)
        finally:
            if running:
                self.engine.abort_request(list(running))

    def _add(self, request: Request) -> Prompt:
        """Hand a request to the engine: its prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.spec.sampling
        prompt = encode_question(self.tokenizer, request.problem.question, self.spec.source.chat)
        ids = prompt.ids
        if self.arm.schedule is not None:
            self.arm.schedule.check_question(len(ids))
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=request.sampling_seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # the text is decoded here, so that think markers survive where they are special tokens
            **{"detokenize": False, **self.checkpoint},
        )
        self.engine.add_request(request.id, {"prompt_token_ids": ids}, parameters)
        return prompt

    def _completion(
        self, request: Request, prompt: Prompt, written: Any, seconds: float, batch: str, run_seconds: float
    ) -> Completion:
        ids, finished = list(written.token_ids), written.finish_reason == "stop"
        format = self.spec.source.chat.format(self.tokenizer)
        lengths = cache_lengths(len(prompt.ids), len(ids), self.arm.schedule)
        return Completion(
            request,
            decode_text(
                self.tokenizer,
                ids,
                ids[-1:] if finished and not isinstance(written.stop_reason, str) else (),
                format,
            ),
            finished,
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


def _followed(config: GenerationConfig) -> dict[str, Any]:
    """What vLLM follows of a checkpoint's generation config, as arguments of `SamplingParams`.

    A line says what it does not.
    """
    found: dict[str, Any] = {
        theirs: getattr(config, ours) for ours, theirs in _THEIR_NAMES.items() if getattr(config, ours) is not None
    }
    if config.stop_strings:
        found |= {"stop": config.stop_strings, "include_stop_str_in_output": True, "detokenize": True}
    said = {name for name, value in config.to_diff_dict().items() if value not in (None, False, 0, 1)}
    left_out = sorted(said - _THEIR_NAMES.keys() - _NOT_OF_THE_TEXT)
    if left_out:
        say_once(f"dynts: vLLM does not follow {', '.join(left_out)} of the checkpoint's generation config")
    return found


def _bytes_per_token(config: Any) -> int | None:
    """Of keys and values, by vLLM's configuration; None for a model whose sizes dynts cannot read."""
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    dtype = kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, config.model_config)
    try:
        return ModelShape.of(config.model_config.hf_config).kv_bytes_per_token(dtype.itemsize)
    except UnsupportedError:
        return None
