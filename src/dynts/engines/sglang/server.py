"""Start SGLang's OpenAI-compatible server with dynts' plugin switched on."""

import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from dynts.config import ModelSource
from dynts.engines.server import exec_server, server_settings
from dynts.engines.sglang.settings import API_KEY, PARSER, environment
from dynts.errors import UnsupportedError
from dynts.extras import need

if TYPE_CHECKING:
    from dynts.decode.arm import Arm


def exec_sglang(
    source: ModelSource,
    options: Mapping[str, object],
    more: Sequence[str],
    arm: "Arm[str]",
    api_key: str | None,
) -> NoReturn:
    """Become SGLang's server, so that signals and the exit code are its own.

    Args:
        source: the model, and how it is talked to.
        options: of the server by their names, None for its default.
        more: further words of its command line.
        arm: method, budget, and the folder or id of an importance predictor.
        api_key: what clients must send; not in the arguments, which every process of the machine can read.

    Raises:
        DyntsError: sglang is not installed, or the predictor cannot be read or does not serve the method.
        UnsupportedError: SGLang would not show the model's think markers to dynts' reasoning parser.
    """
    need("sglang", "sglang", "--engine sglang")
    settings = server_settings(arm, source)
    if not any(word.startswith("--reasoning-parser") for word in more):
        _check_markers(source)
    if options.get("port") == 0:
        options = {**options, "port": _free_port()}
    options = {
        "model-path": source.name,
        "reasoning-parser": PARSER,
        "enable-metrics": True,
        **options,
    }
    key = {} if api_key is None else {API_KEY: api_key}
    exec_server("dynts.engines.sglang.openai", source, options, more, {**environment(settings), **key})


def _free_port() -> int:
    """A port for SGLang, which takes the one that it is told for its own: it asks itself there before it is ready."""
    with socket.create_server(("", 0)) as free:
        return int(free.getsockname()[1])


def _check_markers(source: ModelSource) -> None:
    from dynts.models import load_tokenizer

    tokenizer = load_tokenizer(source)
    format = source.chat.format(tokenizer)
    for marker in (format.start, format.end):
        tokens = tokenizer.encode(marker, add_special_tokens=False)
        if str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() != marker:
            raise UnsupportedError(
                f"SGLang leaves {marker} out of texts, a special token of this model, so that dynts cannot tell "
                "thinking from answer: name a parser of SGLang's, such as -- --reasoning-parser mistral"
            )
