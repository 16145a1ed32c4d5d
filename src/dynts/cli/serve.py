"""`dynts serve`: an OpenAI-compatible server under a KV cache budget."""

import sys
from typing import Annotated, Literal

import typer

from dynts.cli.options import (
    Attention,
    Budget,
    Device,
    Dtype,
    GgufFile,
    Granularity,
    LocalWindow,
    OpenThinking,
    PredictorName,
    RetentionRatio,
    Revision,
    SettingsFile,
    Temperature,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    TopK,
    TopP,
    chat_options,
    check_chat,
)

_TRANSFORMERS_ONLY = (
    "max_batch",
    "max_waiting",
    "max_new_tokens",
    "max_body_bytes",
    "drain_seconds",
    "temperature",
    "top_p",
    "top_k",
    "open_thinking",
    "gguf_file",
    "device",
    "attention",
)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A folder or the id of a Hub repository.")],
    vllm_options: Annotated[
        list[str] | None, typer.Argument(help="After --: further options of vLLM's server, with --engine vllm.")
    ] = None,
    *,
    settings_file: SettingsFile = None,
    predictor: PredictorName = None,
    method: Annotated[str, typer.Option(help="What to keep; `full` keeps everything.")] = "dynts",
    budget: Budget = 5000,
    local_window: LocalWindow = 2000,
    retention_ratio: RetentionRatio = 0.4,
    granularity: Granularity = None,
    engine: Annotated[
        Literal["auto", "transformers", "vllm"], typer.Option(help="What generates; auto is vllm if it is installed.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="DYNTS_API_KEY", help="What clients must send; better in the environment.")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="What clients call the model (default: MODEL).")] = None,
    max_batch: Annotated[int, typer.Option(help="Completions generated at a time.")] = 16,
    max_waiting: Annotated[int, typer.Option(help="Completions that may wait; more get status 429.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a completion, and the default.")] = 16_384,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request; a larger one gets status 413.")] = 2**20,
    drain_seconds: Annotated[float, typer.Option(help="Time for running requests after SIGTERM.")] = 30.0,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.95,
    top_k: TopK = 20,
    open_thinking: OpenThinking = False,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    attention: Attention = None,
    revision: Revision = None,
) -> None:
    """Serve a model with OpenAI's API while the KV cache of every completion stays within a budget.

    Sampling options are for requests that leave theirs open.
    """
    from dynts.config import CompressionConfig, ModelSource
    from dynts.engines.vllm.server import exec_vllm, has_vllm
    from dynts.errors import DyntsError, check_count
    from dynts.extras import need

    chat = chat_options(open_thinking, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    config = CompressionConfig(budget=budget, local_window=local_window, retention_ratio=retention_ratio)
    if api_key is not None and not api_key.strip():
        raise DyntsError("the API key is empty: give one, or leave --api-key and DYNTS_API_KEY out")
    if api_key is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(f"dynts: anyone who reaches {host} can use this server: set DYNTS_API_KEY", file=sys.stderr)
    if engine == "vllm" or (engine == "auto" and has_vllm()):
        for name in _TRANSFORMERS_ONLY:
            given = context.get_parameter_source(name)
            if given is not None and given.name == "COMMANDLINE":
                option = f"--{name.replace('_', '-')}"
                raise DyntsError(f"{option} is for --engine transformers: give vLLM its own options after --")
        if method != "dynts":
            raise DyntsError(f"--engine vllm has method dynts only, got {method!r}: use --engine transformers")
        if granularity == "native":
            raise DyntsError(
                "vLLM keeps one set of tokens for all heads: drop --granularity, or use --engine transformers"
            )
        if predictor is None:
            raise DyntsError("--engine vllm needs --predictor: train one with `dynts label` and `dynts train`")
        options = {"host": host, "port": port, "served-model-name": served_model_name}
        check_chat(source)
        exec_vllm(source, options, vllm_options or [], config, predictor, api_key)
    if vllm_options:
        raise DyntsError(f"options after -- are for --engine vllm, got {' '.join(vllm_options)}: drop them")
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "dynts serve")
    for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting), ("max_body_bytes", max_body_bytes)):
        check_count(name, value, least=1)
    if drain_seconds < 0:
        raise DyntsError(f"drain_seconds must not be negative, got {drain_seconds}")

    from dynts.config import Sampling
    from dynts.decode.compress import compress
    from dynts.methods import check_predictor, resolve_method
    from dynts.methods.variants import configure
    from dynts.models import load_model
    from dynts.predictor.model import ImportancePredictor
    from dynts.serve.server import bind, serve_session

    chosen = configure(resolve_method(method), granularity)
    check_predictor(method, chosen, predictor)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    check_chat(source)
    bound = bind(host, port)
    loaded_predictor = None if predictor is None else ImportancePredictor.from_pretrained(predictor)
    loaded, tokenizer = load_model(source)
    with compress(
        loaded, chosen, config, loaded_predictor, tokenizer=tokenizer, markers=chat.format(tokenizer)
    ) as session:
        serve_session(
            session,
            tokenizer,
            bound,
            name=served_model_name or model,
            sampling=sampling,
            chat=chat,
            api_key=api_key,
            max_batch=max_batch,
            max_waiting=max_waiting,
            max_body_bytes=max_body_bytes,
            drain_seconds=drain_seconds,
        )
