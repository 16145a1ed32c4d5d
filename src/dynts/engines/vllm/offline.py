"""Collect with vLLM, offline: continuous batching, no server."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dynts.decode.arm import Arm
from dynts.engines.engine import Request
from dynts.engines.offline import OfflineEngine, OfflineSpec, Output
from dynts.engines.settings import PluginSettings
from dynts.engines.vllm.settings import KEY
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import DynTS, DynTSAll, Full
from dynts.models import load_generation_config
from dynts.models.shape import ModelShape

_THEIR_NAMES = {"repetition_penalty": "repetition_penalty", "min_p": "min_p", "min_new_tokens": "min_tokens"}
"""Settings of a generation config, and what vLLM calls them."""
_SHUTDOWN_SECONDS = 30
"""For an engine's processes to end by themselves, before vLLM kills them."""


@dataclass(frozen=True, slots=True)
class VllmSpec(OfflineSpec):
    """How to start a `VllmEngine`; engine_args are fields of `EngineArgs`, such as max_model_len."""

    title: ClassVar[str] = "vLLM"
    package: ClassVar[str] = "vllm"
    methods: ClassVar[tuple[str, ...]] = (Full.name, DynTS.name, DynTSAll.name)

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


class VllmEngine(OfflineEngine):
    """vLLM's `LLMEngine`, stepped here, because `LLM.generate` gives nothing back before its last request ends.

    Args:
        spec: how to start it.

    Raises:
        DyntsError: vLLM does not know one of the engine arguments, or a predictor does not fit the model.
        UnsupportedError: the plugin does not support what the engine is asked for.
    """

    spec: VllmSpec

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        # all at once, so that what does not fit shows before hours of work on what does
        for arm in spec.arms:
            spec.arguments(arm).create_engine_config()
        config = load_generation_config(spec.source)
        self.checkpoint = spec.followed(config, _THEIR_NAMES)
        if config.stop_strings:
            self.checkpoint |= {"stop": config.stop_strings, "include_stop_str_in_output": True, "detokenize": True}

    def load(self, arm: Arm[str]) -> None:
        """Start an engine that decodes by an arm."""
        from vllm import LLMEngine

        self.engine = LLMEngine.from_engine_args(self.spec.arguments(arm))
        self.tokenizer = self.engine.get_tokenizer()
        self.bytes_per_token = _bytes_per_token(self.engine.vllm_config)

    def end(self) -> None:
        """End the engine that `load` started."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.engine_core.shutdown(timeout=_SHUTDOWN_SECONDS)
        del self.engine
        # of an engine that has no process of its own
        cleanup_dist_env_and_memory()

    def add(self, request: Request, ids: list[int]) -> None:
        """Hand a request to the engine.

        Args:
            request: it.
            ids: its prompt.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.spec.sampling
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

    def work(self) -> list[Output]:
        """Make a step, and return what has ended with it."""
        ended = [(output.request_id, output.outputs[0]) for output in self.engine.step() if output.finished]
        return [
            Output(name, list(text.token_ids), text.finish_reason == "stop", isinstance(text.stop_reason, str))
            for name, text in ended
        ]

    def abort(self, names: Sequence[str]) -> None:
        """Drop requests that nobody waits for any longer."""
        self.engine.abort_request(list(names))


def _bytes_per_token(config: Any) -> int | None:
    """Of keys and values, by vLLM's configuration; None for a model whose sizes dynts cannot read."""
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    dtype = kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, config.model_config)
    try:
        return ModelShape.of(config.model_config.hf_config).kv_bytes_per_token(dtype.itemsize)
    except UnsupportedError:
        return None
