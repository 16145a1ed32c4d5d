"""Start vLLM's OpenAI-compatible server with dynts' plugin switched on."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from dynts.config import ModelSource
from dynts.engines.server import exec_server, server_settings
from dynts.engines.vllm.settings import MIDDLEWARE, PARSER
from dynts.extras import need

if TYPE_CHECKING:
    from dynts.decode.arm import Arm


def exec_vllm(
    source: ModelSource,
    options: Mapping[str, object],
    more: Sequence[str],
    arm: "Arm[str]",
    api_key: str | None,
) -> NoReturn:
    """Become vLLM's server, so that signals and the exit code are its own.

    Args:
        source: the model, and how it is talked to.
        options: of the server by their names, None for its default.
        more: further words of its command line.
        arm: method, budget, and the folder or id of an importance predictor.
        api_key: what clients must send; not in the arguments, which every process of the machine can read.

    Raises:
        DyntsError: vllm is not installed, or the predictor cannot be read or does not serve the method.
    """
    need("vllm", "vllm", "--engine vllm")
    settings = server_settings(arm, source)
    options = {
        "model": source.name,
        "reasoning-parser": PARSER,
        "middleware": MIDDLEWARE,
        "no-enable-prefix-caching": not settings.policy.protect_question,
        **options,
    }
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    environment = {**os.environ, **settings.to_environment(), **key}
    exec_server("dynts.engines.vllm.openai", source, options, more, environment)
