"""The options that choose an engine, and what they start."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynts.engines import ENGINES, EngineName, engine_spec
from dynts.options import option

if TYPE_CHECKING:
    from dynts.config import ModelSource, Sampling
    from dynts.decode.arm import Arm
    from dynts.engines.engine import EngineSpec


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What generates, and how much at a time.

    Args:
        engine: its name.
        batch: samples at a time; None takes the engine's default.
        engine_args: JSON for vLLM's EngineArgs or SGLang's ServerArgs.
    """

    engine: EngineName = option("transformers", help="What generates.")
    batch: int | None = option(
        None,
        help=f"Samples generated at a time (default: {ENGINES['transformers'].batch}, with vllm and "
        f"sglang {ENGINES['vllm'].batch}).",
    )
    engine_args: str | None = option(
        None, help="JSON for vLLM's EngineArgs, such as '{\"tensor_parallel_size\": 2}', or for SGLang's ServerArgs."
    )

    def arguments(self) -> dict[str, Any]:
        """Return what --engine-args says.

        Raises:
            DyntsError: it is no JSON object.
        """
        from dynts.store.jsonlines import parse_object

        return parse_object(self.engine_args or "{}", "--engine-args")

    def spec(self, source: "ModelSource", sampling: "Sampling", arms: "tuple[Arm[str], ...]") -> "EngineSpec":
        """Return how to start the engine.

        Args:
            source: the model.
            sampling: how to draw tokens.
            arms: all that requests will ask for.

        Raises:
            DyntsError: an option or a method that the engine does not have, no batch, or it is not installed.
        """
        return engine_spec(self.engine, source, sampling, arms, self.batch, self.arguments())
