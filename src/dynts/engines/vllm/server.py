"""Start vLLM's OpenAI-compatible server with dynts' plugin switched on."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn

from dynts.config import ModelSource
from dynts.engines.settings import MIDDLEWARE, PluginSettings
from dynts.engines.vllm.settings import PARSER
from dynts.extras import need

if TYPE_CHECKING:
    from dynts.decode.arm import Arm


def has_vllm() -> bool:
    """Say whether vLLM is installed where dynts is.

    One in another environment lacks the plugin, and would never evict.
    """
    return find_spec("vllm") is not None


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
    from dynts.predictor.model import ImportancePredictor

    need("vllm", "vllm", "--engine vllm")
    settings = PluginSettings.of(arm, source.chat)
    # the plugin looks too, but refuses with the server's stack trace
    settings.policy.check_scores(ImportancePredictor.from_pretrained(settings.predictor))
    template = source.chat.template_args
    arguments = json.dumps(dict(template)) if template else None
    options = {
        "reasoning-parser": PARSER,
        "default-chat-template-kwargs": arguments,
        "middleware": MIDDLEWARE,
        **options,
    }
    options |= {"dtype": source.dtype, "revision": source.revision}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    if not settings.policy.protect_question:
        given.append("--no-enable-prefix-caching")
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    environment = {**os.environ, **settings.to_environment(), **key}
    server = [sys.executable, "-m", "dynts.engines.vllm.openai"]
    sys.stdout.flush()
    os.execve(sys.executable, [*server, "--model", source.name, *given, *more], environment)
