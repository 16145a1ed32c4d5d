"""Start vLLM's OpenAI-compatible server with dynts' plugin switched on."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import NoReturn

from dynts.config import MethodOptions, ModelSource
from dynts.engines.vllm.settings import PARSER
from dynts.errors import DyntsError
from dynts.extras import need


def has_vllm() -> bool:
    """Say whether vLLM is installed where dynts is.

    One in another environment lacks the plugin, and would never evict.
    """
    return find_spec("vllm") is not None


def exec_vllm(
    source: ModelSource,
    options: Mapping[str, object],
    more: Sequence[str],
    method: MethodOptions,
    api_key: str | None,
) -> NoReturn:
    """Become vLLM's server, so that signals and the exit code are its own.

    Args:
        source: the model, and how it is talked to.
        options: of the server by their names, None for its default.
        more: further words of its command line.
        method: the budget, the granularity, and the folder or id of an importance predictor.
        api_key: what clients must send; not in the arguments, which every process of the machine can read.

    Raises:
        DyntsError: vllm is not installed, or there is no predictor that can be read and serves the granularity.
    """
    from dynts.methods.dynts import check_granularity_of
    from dynts.predictor.model import ImportancePredictor

    if method.predictor is None:
        raise DyntsError("--engine vllm needs --predictor: train one with `dynts label` and `dynts train`")
    need("vllm", "vllm", "--engine vllm")
    granularity = method.granularity or "shared"
    # the plugin reads it too, but refuses it with the server's stack trace
    check_granularity_of(ImportancePredictor.from_pretrained(method.predictor), granularity)
    chat = source.chat
    arguments = json.dumps(dict(chat.template_args)) if chat.template_args else None
    options = {"reasoning-parser": PARSER, "default-chat-template-kwargs": arguments, **options}
    options |= {"dtype": source.dtype, "revision": source.revision}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    settings = {
        "DYNTS_PREDICTOR": method.predictor,
        "DYNTS_BUDGET": str(method.config.budget),
        "DYNTS_LOCAL_WINDOW": str(method.config.local_window),
        "DYNTS_RETENTION_RATIO": str(method.config.retention_ratio),
        "DYNTS_GRANULARITY": granularity,
    }
    markers = {"DYNTS_THINK_START": chat.think_start, "DYNTS_THINK_END": chat.think_end}
    settings |= {name: text for name, text in markers.items() if text is not None}
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    # not the command `vllm`, which does not start in the CPU build
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    sys.stdout.flush()
    os.execve(sys.executable, [*server, "--model", source.name, *given, *more], {**os.environ, **settings, **key})
