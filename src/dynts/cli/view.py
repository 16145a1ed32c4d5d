"""`dynts view`: one trace as an HTML page."""

from dataclasses import dataclass
from pathlib import Path

from dynts.cli.checks import check_chat, check_folder
from dynts.cli.console import load_libraries, say, show
from dynts.config import CompressionConfig, ModelSource
from dynts.options import option, part


@dataclass(kw_only=True)
class ViewCommand:
    """What `dynts view` is given."""

    source: ModelSource = part(open_thinking=None)
    traces: Path = option(help="A folder of traces, or JSON Lines with question, response, answer, optional id.")
    out: Path = option(help="The page, one HTML file.")
    id: str | None = option(None, help="The trace to show (default: the first).")
    question: str | None = option(None, help="Instead of --id: its question, or a part of it.")
    predictor: tuple[str, ...] = option(
        (), help="Importance predictor, a folder or the id of a Hub repository; may be given several times."
    )
    method: str = option("dynts", help="Methods to show side by side, separated by commas.")
    native: bool = option(
        False,
        switch=True,
        help="Show h2o, snapkv, rkv, random, keydiff, vase, and dynts with a predictor of a native label also with a "
        "set of tokens per layer and KV head.",
    )
    protect_question: bool = option(False, help="Keep the question even where a method as published would not.")
    config: CompressionConfig = part()


def view(given: ViewCommand) -> None:
    """Show a trace as a page: the importance of each token, and what each method keeps of it at every decode step.

    The trace is labelled, scored, and decoded once with each method, its own tokens given. The page is one file that
    needs no network.
    """
    load_libraries("dynts.view.data")

    from contextlib import ExitStack

    from dynts.errors import DyntsError
    from dynts.models import load_model, load_tokenizer
    from dynts.store.progress import bar
    from dynts.traces.sets import as_sets
    from dynts.view.chosen import choose_methods, choose_trace, load_predictors, tokenize_chosen
    from dynts.view.data import view_trace
    from dynts.view.page import write_page

    source, config, out = given.source, given.config, given.out
    check_folder(out)
    if out.is_dir():
        raise DyntsError(f"--out {out} is a folder: give the name of a file in it, such as {out / 'view.html'}")
    predictors = load_predictors(given.predictor)
    methods = choose_methods(
        [name.strip() for name in given.method.split(",")],
        predictors,
        native=given.native,
        protect_question=given.protect_question,
    )
    check_chat(source, opened=True)
    trace = choose_trace(as_sets(given.traces), given.id, given.question)
    tokens = tokenize_chosen(load_tokenizer(source), trace, source.chat)
    config.check_question(tokens.question_end)
    loaded, tokenizer = load_model(source)
    folder = Path(source.name)
    name = folder.resolve().name if folder.is_dir() else source.name
    with ExitStack() as stack:
        names = ("labels", *(viewed.name(question=False) for viewed in methods))
        bars = {what: stack.enter_context(bar(what)) for what in names}

        def note(what: str, done: int, total: int) -> None:
            bars[what].update(done, total)

        shown = view_trace(
            loaded, tokenizer, trace, tokens, methods, config, predictors, source.chat, name=name, progress=note
        )
    write_page(shown, out)
    show(f"trace {trace.id}, {len(tokens.ids)} tokens: {out}")
    if not any(kept.evictions for kept in shown.kept):
        smaller = max(2 * tokens.question_end, round(0.4 * len(tokens.ids)))
        window = round(0.4 * (smaller - tokens.question_end))
        say(
            f"nothing was evicted: the trace does not reach the budget of {config.budget} tokens; "
            f"try --budget {smaller} --local-window {window}"
        )
