"""`dynts tune`: find budget, local window and retention ratio on traces of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from dynts.cli.options import (
    Attention,
    Device,
    Dtype,
    GgufFile,
    Granularity,
    PredictorName,
    Revision,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    chat_options,
    check_chat,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynts.config import CompressionConfig, Settings
    from dynts.planning.frontier import FrontierPoint

Number = TypeVar("Number", int, float)


def tune(
    *,
    model: Annotated[
        str, typer.Option(help="The model that wrote the traces: a folder or the id of a Hub repository.")
    ],
    traces: Annotated[
        list[Path],
        typer.Option(
            help="A folder of traces, or JSON Lines with question, response (after the opening think marker), answer; "
            "several are mixed."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results. Run the same command again to continue.")],
    predictor: PredictorName = None,
    method: Annotated[str, typer.Option(help="What chooses the tokens that stay.")] = "dynts",
    granularity: Granularity = None,
    budgets: Annotated[
        str | None, typer.Option(help="Such as 3000,5000 (default: 20, 30, 40 and 50% of the traces' mean length).")
    ] = None,
    windows: Annotated[str, typer.Option(help="Local windows, as shares of the budget.")] = "0.3,0.4,0.5",
    ratios: Annotated[str, typer.Option(help="Retention ratios.")] = "0.3,0.4,0.5",
    tolerance: Annotated[
        float, typer.Option(help="Largest KL divergence from the full cache of an answer token, in nats.")
    ] = 0.01,
    thinking_tolerance: Annotated[
        float, typer.Option(help="Largest fall of a thinking token's log p from that with the full cache, in nats.")
    ] = 0.005,
    limit: Annotated[int, typer.Option(help="Replay the first fit traces only, this many.", min=1)] = 100,
    max_tokens: Annotated[int, typer.Option(help="Drop longer traces, prompt and answer included.")] = 16_384,
    keep_incorrect: Annotated[
        bool, typer.Option(help="Keep traces whose answer is wrong or cannot be graded.")
    ] = False,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    attention: Attention = None,
    revision: Revision = None,
) -> None:
    """Replay traces under many settings, and choose the smallest budget that leaves them as likely as they were.

    A trace's tokens are fed as they were written while the cache is compacted on schedule: a few forward passes for each
    setting instead of a generation. Measured is how far the distributions of the answer's tokens move, and how much less
    likely the thinking becomes. Writes a table, a picture and settings.json, for --settings of other commands.
    """
    from dynts.config import ModelSource, Settings
    from dynts.errors import DyntsError
    from dynts.extras import need
    from dynts.methods import check_predictor, resolve_method
    from dynts.methods.variants import configure
    from dynts.planning.tune import TuneSpec, tune
    from dynts.traces.sets import as_sets

    need("matplotlib", "plot", "the picture of dynts tune")
    chosen = configure(resolve_method(method), granularity)
    if not chosen.evicts:
        raise DyntsError("method 'full' evicts nothing, so it has no settings to find: choose another one")
    check_predictor(method, chosen, predictor)
    for name, value in (("tolerance", tolerance), ("thinking-tolerance", thinking_tolerance)):
        if not value > 0:
            raise DyntsError(f"--{name} must be above 0, got {value}: that of the full cache itself is 0")
    chat = chat_options(False, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    spec = TuneSpec(
        source,
        chosen,
        predictor,
        budgets=None if budgets is None else _numbers("budgets", budgets, int),
        windows=_numbers("windows", windows, float),
        ratios=_numbers("ratios", ratios, float),
        limit=limit,
        max_tokens=max_tokens,
        keep_incorrect=keep_incorrect,
    )
    sets = as_sets(traces)
    check_chat(source, opened=True)
    _ = sets.sha256  # a malformed line should not cost the loading of a model first

    from dynts.store.progress import Display

    with Display("tuning") as display:
        points = tune(spec, sets, out, display)
    if predictor is not None and Path(predictor).is_dir():
        predictor = str(Path(predictor).resolve())  # the settings file may be used from anywhere
    _report(
        points,
        (tolerance, thinking_tolerance),
        out,
        lambda best: Settings(
            best, method, predictor, granularity, think_start, think_end, dict(chat.template_args) or None
        ),
    )


def _report(
    points: "list[FrontierPoint]",
    tolerances: tuple[float, float],
    out: Path,
    settings_of: "Callable[[CompressionConfig], Settings]",
) -> None:
    """Write table, picture and the settings file that `settings_of` the best point gives.

    Raises:
        DyntsError: no setting is within the tolerances.
    """
    from rich.console import Console

    from dynts.config import save_settings
    from dynts.errors import DyntsError
    from dynts.planning.frontier import choose
    from dynts.report.tune import draw_frontier, frontier_markdown, frontier_table
    from dynts.store.files import write_text_whole

    best = choose(points, *tolerances)
    write_text_whole(out / "frontier.md", frontier_markdown(points, best))
    draw_frontier(points, best, *tolerances, out / "frontier.png")
    console = Console()
    console.print(frontier_table(points, best))
    settings_file = out / "settings.json"
    if best is None:
        settings_file.unlink(missing_ok=True)  # of an earlier run with another tolerance
        answer, thinking = tolerances
        # the one that misses its tolerances by the smallest factor
        nearest = min(points, key=lambda point: max(point.kl / answer, point.thinking_loss / thinking))
        raise DyntsError(
            f"no setting is within the tolerances of {answer:g} nats for the answer and {thinking:g} for the thinking; the "
            f"nearest has {nearest.kl:.4f} and {nearest.thinking_loss:.4f} with budget {nearest.setting.budget}: run the same "
            "command with larger --budgets, or another --tolerance or --thinking-tolerance"
        )
    save_settings(settings_file, settings_of(best.setting))
    console.print(
        f"{best.setting.describe()}: KL {best.kl:.4f} nats an answer token, loss {best.thinking_loss:.4f} a thinking token; "
        f"in {settings_file}",
        highlight=False,
        soft_wrap=True,
    )
    if not best.compacted:
        console.print("no trace is long enough to be compacted with it: longer traces would tell more")


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """Numbers with commas between them.

    Raises:
        DyntsError: the text holds something else.
    """
    from dynts.errors import DyntsError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise DyntsError(f"--{name} must be numbers with commas between them, got {text!r}") from error
