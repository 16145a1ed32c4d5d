"""`dynts serve`: an OpenAI-compatible server under a KV cache budget."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from dynts.cli.checks import check_chat, load_session, resolve
from dynts.cli.console import say, show
from dynts.config import PREFILL_TOKENS, MethodOptions, ModelSource, Sampling
from dynts.options import flag_of, option, part

_TRANSFORMERS_ONLY = (
    *("max_batch", "max_waiting", "prefill_tokens", "max_new_tokens", "max_body_bytes", "drain_seconds"),
    *("temperature", "top_p", "top_k", "open_thinking", "gguf_file", "device", "attention"),
)


@dataclass(kw_only=True)
class ServeCommand:
    """What `dynts serve` is given."""

    source: ModelSource = part(name={"positional": True})
    vllm_options: tuple[str, ...] = option(
        (), positional=True, help="After --: further options of vLLM's server, with --engine vllm."
    )
    method: MethodOptions = part(protect_question=None)
    engine: Literal["auto", "transformers", "vllm"] = option(
        "auto", help="What generates; auto is vllm if it is installed."
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
    from dynts.engines.vllm.server import has_vllm
    from dynts.errors import DyntsError, check_count
    from dynts.extras import need

    if given.api_key is not None and not given.api_key.strip():
        raise DyntsError("the API key is empty: give one, or leave --api-key and DYNTS_API_KEY out")
    if given.api_key is None and given.host not in ("127.0.0.1", "::1", "localhost"):
        say(f"dynts: anyone who reaches {given.host} can use this server: set DYNTS_API_KEY")
    if given.engine == "vllm" or (given.engine == "auto" and has_vllm()):
        _become_vllm(given, explicit)
    if given.vllm_options:
        raise DyntsError(f"options after -- are for --engine vllm, got {' '.join(given.vllm_options)}: drop them")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "dynts serve")
    for name in ("max_batch", "max_waiting", "prefill_tokens", "max_body_bytes"):
        check_count(name, getattr(given, name), least=1)
    if given.drain_seconds < 0:
        raise DyntsError(f"drain_seconds must not be negative, got {given.drain_seconds}")

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


def _become_vllm(given: ServeCommand, explicit: Collection[str]) -> None:
    """Become vLLM's server.

    Raises:
        DyntsError: an option or a method that it does not have.
    """
    from dynts.engines.vllm.server import exec_vllm
    from dynts.errors import DyntsError

    for name in _TRANSFORMERS_ONLY:
        if name in explicit:
            raise DyntsError(f"{flag_of(name)} is for --engine transformers: give vLLM its own options after --")
    name = given.method.method
    if name not in ("dynts", "dynts-all"):
        raise DyntsError(f"--engine vllm has methods dynts and dynts-all only, got {name!r}: use --engine transformers")
    arm = resolve(given.method)
    options = {"host": given.host, "port": given.port, "served-model-name": given.served_model_name}
    check_chat(given.source)
    exec_vllm(given.source, options, given.vllm_options, arm, given.api_key)
