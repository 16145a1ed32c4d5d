"""`dynts serve`: an OpenAI-compatible server under a KV cache budget."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NoReturn

from dynts.cli.checks import check_chat, load_session, resolve
from dynts.cli.console import load_libraries, say, show
from dynts.config import PREFILL_TOKENS, MethodOptions, ModelSource, Sampling
from dynts.options import flag_of, option, part

_TRANSFORMERS_ONLY = (
    *("max_batch", "max_waiting", "prefill_tokens", "max_new_tokens", "max_body_bytes", "drain_seconds"),
    *("temperature", "top_p", "top_k", "open_thinking", "gguf_file", "device", "attention"),
)
_METHODS = {"vllm": ("dynts", "dynts-all"), "sglang": ("dynts",)}
"""Of the engines that bring a server."""


@dataclass(kw_only=True)
class ServeCommand:
    """What `dynts serve` is given."""

    source: ModelSource = part(name={"positional": True})
    engine_options: tuple[str, ...] = option(
        (), positional=True, help="After --: further options of vLLM's or SGLang's server, with that --engine."
    )
    method: MethodOptions = part(protect_question=None)
    engine: Literal["auto", "transformers", "vllm", "sglang"] = option(
        "auto", help="What generates; auto is vllm, or else sglang, if it is installed."
    )
    host: str = option("127.0.0.1", help="Address to listen at; 0.0.0.0 is every network.")
    port: int = option(8000, least=0, most=65535, help="0 takes a free one.")
    api_key: str | None = option(
        None, envvar="DYNTS_API_KEY", help="What clients must send; better in the environment."
    )
    served_model_name: str | None = option(None, help="What clients call the model (default: MODEL).")
    max_batch: int = option(16, help="Completions generated at a time.")
    max_waiting: int = option(256, help="Completions that may wait; more get status 429.")
    prefill_tokens: int = option(
        PREFILL_TOKENS, help="Prompt tokens read between two steps: the longest that running completions wait."
    )
    max_body_bytes: int = option(2**20, help="Largest request; a larger one gets status 413.")
    drain_seconds: float = option(30.0, help="Time for running requests after SIGTERM.")
    sampling: Sampling = part(max_new_tokens="Most tokens of a completion, and the default.", seed=None)


def serve(given: ServeCommand, explicit: Collection[str]) -> None:
    """Serve a model with OpenAI's API while the KV cache of every completion stays within a budget.

    Sampling options are for requests that leave theirs open.
    """
    from dynts.errors import DyntsError, check_count
    from dynts.extras import installed, need

    if given.api_key is not None and not given.api_key.strip():
        raise DyntsError("the API key is empty: give one, or leave --api-key and DYNTS_API_KEY out")
    if given.api_key is None and given.host not in ("127.0.0.1", "::1", "localhost"):
        say(f"dynts: anyone who reaches {given.host} can use this server: set DYNTS_API_KEY")
    # one of another environment lacks the plugin, and would never evict
    for engine in _METHODS:
        if given.engine == engine or (given.engine == "auto" and installed(engine)):
            _become(engine, given, explicit)
    if given.engine_options:
        raise DyntsError(
            f"options after -- are for --engine vllm and sglang, got {' '.join(given.engine_options)}: drop them"
        )
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "dynts serve")
    for name in ("max_batch", "max_waiting", "prefill_tokens", "max_body_bytes"):
        check_count(name, getattr(given, name), least=1)
    if given.drain_seconds < 0:
        raise DyntsError(f"drain_seconds must not be negative, got {given.drain_seconds}")

    load_libraries("dynts.serve.server")
    from dynts.serve.server import bind, serve_session

    arm = resolve(given.method)
    check_chat(given.source)
    bound = bind(given.host, given.port)
    session, _, tokenizer = load_session(given.source, arm)
    with session:
        serve_session(
            session,
            tokenizer,
            bound,
            name=given.served_model_name or given.source.name,
            sampling=given.sampling,
            chat=given.source.chat,
            api_key=given.api_key,
            max_batch=given.max_batch,
            max_waiting=given.max_waiting,
            prefill_tokens=given.prefill_tokens,
            max_body_bytes=given.max_body_bytes,
            drain_seconds=given.drain_seconds,
            announce=show,
        )


def _become(engine: str, given: ServeCommand, explicit: Collection[str]) -> NoReturn:
    """Become the engine's server.

    Raises:
        DyntsError: an option or a method that it does not have.
    """
    from dynts.errors import DyntsError

    for name in _TRANSFORMERS_ONLY:
        if name in explicit:
            raise DyntsError(
                f"{flag_of(name)} is for --engine transformers: give the server of {engine} its own options after --"
            )
    name, has = given.method.method, " and ".join(_METHODS[engine])
    if name not in _METHODS[engine]:
        raise DyntsError(f"--engine {engine} has of the methods {has} only, got {name!r}: use --engine transformers")
    arm = resolve(given.method)
    options = {"host": given.host, "port": given.port, "served-model-name": given.served_model_name}
    check_chat(given.source)
    if engine == "vllm":
        from dynts.engines.vllm.server import exec_vllm as become
    else:
        from dynts.engines.sglang.server import exec_sglang as become
    become(given.source, options, given.engine_options, arm, given.api_key)
