"""`dynts view`: one trace as an HTML page."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dynts.cli.options import (
    Attention,
    Budget,
    Device,
    Dtype,
    GgufFile,
    LocalWindow,
    RetentionRatio,
    Revision,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    chat_options,
    check_chat,
)


def view(
    *,
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository.")],
    traces: Annotated[
        Path, typer.Option(help="A folder of traces, or JSON Lines with question, response, answer, optional id.")
    ],
    out: Annotated[Path, typer.Option(help="The page, one HTML file.")],
    id: Annotated[str | None, typer.Option("--id", help="The trace to show (default: the first).")] = None,
    question: Annotated[str | None, typer.Option(help="Instead of --id: its question, or a part of it.")] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(help="Importance predictor, a folder or the id of a Hub repository; may be given several times."),
    ] = None,
    method: Annotated[str, typer.Option(help="Methods to show side by side, separated by commas.")] = "dynts",
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Show h2o, snapkv, rkv, and dynts with a predictor of a native label, also with a set of tokens per layer "
            "and KV head.",
        ),
    ] = False,
    protect_question: Annotated[
        bool, typer.Option(help="Keep the question even where a method as published would not.")
    ] = False,
    budget: Budget = 5000,
    local_window: LocalWindow = 2000,
    retention_ratio: RetentionRatio = 0.4,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    attention: Attention = None,
    revision: Revision = None,
) -> None:
    """Show a trace as a page: the importance of each token, and what each method keeps of it at every decode step.

    The trace is labelled, scored, and decoded once with each method, its own tokens given. The page is one file that needs no
    network.
    """
    from rich.console import Console
    from rich.progress import Progress

    from dynts.cli.outputs import check_folder
    from dynts.config import CompressionConfig, ModelSource
    from dynts.errors import DyntsError
    from dynts.models import load_model, load_tokenizer
    from dynts.traces.sets import as_sets
    from dynts.view.chosen import choose_methods, choose_trace, load_predictors, tokenize_chosen
    from dynts.view.data import view_trace
    from dynts.view.page import write_page

    check_folder(out)
    chat = chat_options(False, think_start, think_end, template_arg)
    if out.is_dir():
        raise DyntsError(f"--out {out} is a folder: give the name of a file in it, such as {out / 'view.html'}")
    config = CompressionConfig(budget=budget, local_window=local_window, retention_ratio=retention_ratio)
    predictors = load_predictors(predictor or [])
    names = [name.strip() for name in method.split(",")]
    methods = choose_methods(names, predictors, native=native, protect_question=protect_question)
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    check_chat(source, opened=True)
    trace = choose_trace(as_sets(traces), id, question)
    tokens = tokenize_chosen(load_tokenizer(source), trace, chat)
    config.check_question(tokens.question_end)
    loaded, tokenizer = load_model(source)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks = {
            what: bars.add_task(what, total=None)
            for what in ("labels", *(viewed.name(question=False) for viewed in methods))
        }

        def show(what: str, done: int, total: int) -> None:
            bars.update(tasks[what], completed=done, total=total)

        shown = view_trace(
            loaded, tokenizer, trace, tokens, methods, config, predictors, chat, name=name, progress=show
        )
    write_page(shown, out)
    print(f"trace {trace.id}, {len(tokens.ids)} tokens: {out}")
    if not any(kept.evictions for kept in shown.kept):
        smaller = max(2 * tokens.question_end, round(0.4 * len(tokens.ids)))
        window = round(0.4 * (smaller - tokens.question_end))
        print(
            f"nothing was evicted: the trace does not reach the budget of {budget} tokens; "
            f"try --budget {smaller} --local-window {window}",
            file=sys.stderr,
        )
