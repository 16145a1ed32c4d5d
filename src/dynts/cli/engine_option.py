"""The options that choose an engine, and what they start."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from dynts.config import ModelSource, Sampling
    from dynts.decode.arm import Arm
    from dynts.engines.engine import EngineSpec

Engine = Annotated[Literal["transformers", "vllm"], typer.Option(help="What generates.")]
Batch = Annotated[int | None, typer.Option(help="Samples generated at a time (default: 20, with vllm 256).")]
EngineArgs = Annotated[
    str | None, typer.Option(help="JSON for vLLM's EngineArgs, such as '{\"tensor_parallel_size\": 2}'.")
]


def read_engine_args(engine: str, text: str | None) -> dict[str, Any]:
    """What --engine-args says.

    Raises:
        DyntsError: it is no JSON object, or the engine takes none.
    """
    from dynts.errors import DyntsError
    from dynts.store.jsonlines import parse_object

    found = parse_object(text or "{}", "--engine-args")
    if found and engine != "vllm":
        raise DyntsError("--engine-args are for --engine vllm: drop them")
    return found


def engine_spec(
    engine: str,
    source: "ModelSource",
    sampling: "Sampling",
    arms: "tuple[Arm[str], ...]",
    batch: int | None,
    engine_args: dict[str, Any],
) -> "EngineSpec":
    """How to start the engine that the options ask for.

    Raises:
        DyntsError: an option or a method that it does not have, no batch, or vllm is not installed.
    """
    from dynts.engines.transformers import TransformersSpec
    from dynts.engines.vllm.offline import VllmSpec
    from dynts.errors import DyntsError

    if batch is not None and batch < 1:
        raise DyntsError(f"batch must be at least 1, got {batch}")
    if engine == "vllm":
        if source.gguf_file or source.attention:
            raise DyntsError("--engine vllm takes no --gguf-file and no --attention: use --engine transformers")
        return VllmSpec(source, sampling, arms, batch or 256, engine_args)
    return TransformersSpec(source.on_this_rank(), sampling, arms, batch or 20)
