"""What generates: transformers, vLLM and SGLang behind one interface, on one machine or on a Ray cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dynts.config import ModelSource, Sampling
    from dynts.decode.arm import Arm
    from dynts.engines.engine import EngineSpec

EngineName = Literal["transformers", "vllm", "sglang"]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What has to be known of an engine before it is there.

    Args:
        batch: how many samples it generates at a time by default.
        takes_attention: whether a GGUF file or an attention implementation can be chosen.
        takes_arguments: whether it has arguments of its own.
        one_arm: whether an engine that has been started decodes by one arm only, so that arms had better come one by
            one.
        start: makes the spec of model, sampling, arms, batch and own arguments; imports what the engine needs.
    """

    batch: int
    takes_attention: bool
    takes_arguments: bool
    one_arm: bool
    start: "Callable[[ModelSource, Sampling, tuple[Arm[str], ...], int, dict[str, Any]], EngineSpec]"


def _transformers(
    source: "ModelSource", sampling: "Sampling", arms: "tuple[Arm[str], ...]", batch: int, _: dict[str, Any]
) -> "EngineSpec":
    from dynts.engines.transformers import TransformersSpec

    return TransformersSpec(source.on_this_rank(), sampling, arms, batch)


def _vllm(
    source: "ModelSource", sampling: "Sampling", arms: "tuple[Arm[str], ...]", batch: int, arguments: dict[str, Any]
) -> "EngineSpec":
    from dynts.engines.vllm.offline import VllmSpec

    return VllmSpec(source, sampling, arms, batch, arguments)


def _sglang(
    source: "ModelSource", sampling: "Sampling", arms: "tuple[Arm[str], ...]", batch: int, arguments: dict[str, Any]
) -> "EngineSpec":
    from dynts.engines.sglang.offline import SglangSpec

    return SglangSpec(source, sampling, arms, batch, arguments)


ENGINES: dict[EngineName, EngineKind] = {
    "transformers": EngineKind(20, True, False, False, _transformers),
    "vllm": EngineKind(256, False, True, True, _vllm),
    "sglang": EngineKind(256, False, True, True, _sglang),
}


def engine_spec(
    name: EngineName,
    source: "ModelSource",
    sampling: "Sampling",
    arms: "Sequence[Arm[str]]",
    batch: int | None,
    arguments: dict[str, Any],
) -> "EngineSpec":
    """Return how to start an engine.

    Args:
        name: of the engine.
        source: the model.
        sampling: how to draw tokens.
        arms: all that requests will ask for.
        batch: samples at a time; None takes the engine's default.
        arguments: the engine's own.

    Raises:
        DyntsError: an option or a method that the engine does not have, no batch, or the engine is not installed.
    """
    from dynts.errors import DyntsError

    kind = ENGINES[name]
    if batch is not None and batch < 1:
        raise DyntsError(f"batch must be at least 1, got {batch}")
    if arguments and not kind.takes_arguments:
        takers = " or ".join(f"--engine {each}" for each, other in ENGINES.items() if other.takes_arguments)
        raise DyntsError(f"--engine-args are for {takers}: drop them")
    if (source.gguf_file or source.attention) and not kind.takes_attention:
        takers = " or ".join(f"--engine {each}" for each, other in ENGINES.items() if other.takes_attention)
        raise DyntsError(f"--engine {name} takes no --gguf-file and no --attention: use {takers}")
    return kind.start(source, sampling, tuple(arms), batch or kind.batch, arguments)
