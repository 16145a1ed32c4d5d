"""`dynts tune`: find budget, local window and retention ratio on traces of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dynts.cli.checks import check_chat, resolve
from dynts.cli.console import Continues, load_libraries, show_page
from dynts.config import MAX_TOKENS, CompressionConfig, MethodOptions, ModelSource, Settings, save_settings
from dynts.options import option, part

if TYPE_CHECKING:
    from dynts.planning.frontier import FrontierPoint

Number = TypeVar("Number", int, float)


@dataclass(kw_only=True)
class TuneCommand(Continues):
    """What `dynts tune` is given."""

    source: ModelSource = part(
        name="The model that wrote the traces: a folder or the id of a Hub repository.", open_thinking=None
    )
    traces: tuple[Path, ...] = option(
        help="A folder of traces, or JSON Lines with question, response (after the opening think marker), answer; "
        "several are mixed."
    )
    out: Path = option(help="Folder for the results. Run the same command again to continue.")
    method: MethodOptions = part(
        method="What chooses the tokens that stay.",
        budget=None,
        local_window=None,
        retention_ratio=None,
        threshold=None,
        protect_question=None,
    )
    budgets: str | None = option(
        None, help="Such as 3000,5000 (default: 20, 30, 40 and 50% of the traces' mean length)."
    )
    windows: str = option("0.3,0.4,0.5", help="Local windows, as shares of the budget.")
    ratios: str = option("0.3,0.4,0.5", help="Retention ratios.")
    tolerance: float = option(0.01, help="Largest KL divergence from the full cache of an answer token, in nats.")
    thinking_tolerance: float = option(
        0.005, help="Largest fall of a thinking token's log p from that with the full cache, in nats."
    )
    limit: int = option(100, least=1, help="Replay the first fit traces only, this many.")
    max_tokens: int = option(MAX_TOKENS, help="Drop longer traces, prompt and answer included.")
    keep_incorrect: bool = option(False, help="Keep traces whose answer is wrong or cannot be graded.")

    def found(self, best: CompressionConfig) -> Settings:
        """Return the settings file's content with this budget; it may be used from anywhere."""
        method, predictor, chat = self.method, self.method.predictor, self.source.chat
        if predictor is not None and Path(predictor).is_dir():
            predictor = str(Path(predictor).resolve())
        markers = (chat.think_start, chat.think_end, dict(chat.template_args) or None)
        return Settings(best, method.method, predictor, method.granularity, *markers)


def tune(given: TuneCommand) -> None:
    """Replay traces under many settings, and choose the smallest budget that leaves them as likely as they were.

    A trace's tokens are fed as they were written while the cache is compacted on schedule: a few forward passes for
    each setting instead of a generation. Measured is how far the distributions of the answer's tokens move, and how
    much less likely the thinking becomes. Writes a table, a picture and settings.json, for --settings of other
    commands.
    """
    load_libraries("dynts.planning.tune")

    from dynts.errors import DyntsError
    from dynts.extras import need
    from dynts.planning.tune import TuneSpec, tune
    from dynts.store.progress import Display
    from dynts.traces.sets import as_sets

    need("matplotlib", "plot", "the picture of dynts tune")
    arm = resolve(given.method)
    if not arm.method.evicts:
        raise DyntsError("method 'full' evicts nothing, so it has no settings to find: choose another one")
    for name, value in (("tolerance", given.tolerance), ("thinking-tolerance", given.thinking_tolerance)):
        if not value > 0:
            raise DyntsError(f"--{name} must be above 0, got {value}: that of the full cache itself is 0")
    spec = TuneSpec(
        given.source,
        arm.method,
        arm.predictor,
        budgets=None if given.budgets is None else _numbers("budgets", given.budgets, int),
        windows=_numbers("windows", given.windows, float),
        ratios=_numbers("ratios", given.ratios, float),
        limit=given.limit,
        max_tokens=given.max_tokens,
        keep_incorrect=given.keep_incorrect,
    )
    sets = as_sets(given.traces)
    check_chat(given.source, opened=True)
    _ = sets.sha256  # a malformed line should not cost the loading of a model first
    with Display("tuning") as display:
        points = tune(spec, sets, given.out, display)
    about = {"model": given.source.path, "traces": ", ".join(sets.names), "method": arm.name()}
    _report(points, (given.tolerance, given.thinking_tolerance), given.out, about, given.found)


def _report(
    points: "list[FrontierPoint]",
    tolerances: tuple[float, float],
    out: Path,
    about: dict[str, str],
    settings_of: Callable[[CompressionConfig], Settings],
) -> None:
    """Write table, picture and the settings file that `settings_of` the best point gives.

    Raises:
        DyntsError: no setting is within the tolerances.
    """
    from rich.console import Console

    from dynts.errors import DyntsError
    from dynts.planning.frontier import choose
    from dynts.report.offline import write_page
    from dynts.report.tune import FRONTIER_PICTURE, draw_frontier, frontier_page, frontier_table
    from dynts.store.files import writing_to
    from dynts.store.progress import bar

    best = choose(points, *tolerances)
    table = frontier_table(points, best)
    text, figure = frontier_page(points, best, *tolerances, about), draw_frontier(points, best, *tolerances)
    with bar("drawing"), writing_to(out):
        page = write_page(out / "frontier.md", text, {FRONTIER_PICTURE: figure})
    console = Console()
    console.print(table.terminal())
    settings_file = out / "settings.json"
    if best is None:
        settings_file.unlink(missing_ok=True)  # of an earlier run with another tolerance
        answer, thinking = tolerances
        show_page(page)
        # the one that misses its tolerances by the smallest factor
        nearest = min(points, key=lambda point: max(point.kl / answer, point.thinking_loss / thinking))
        raise DyntsError(
            f"no setting is within the tolerances of {answer:g} nats for the answer and {thinking:g} for the thinking; "
            f"the nearest has {nearest.kl:.4f} and {nearest.thinking_loss:.4f} with budget {nearest.setting.budget}: "
            "run the same command with larger --budgets, or another --tolerance or --thinking-tolerance"
        )
    save_settings(settings_file, settings_of(best.setting))
    console.print(
        f"{best.setting.describe()}: KL {best.kl:.4f} nats an answer token, loss {best.thinking_loss:.4f} a thinking "
        f"token; in {settings_file}",
        highlight=False,
        soft_wrap=True,
    )
    if not best.compacted:
        console.print("no trace is long enough to be compacted with it: longer traces would tell more")
    show_page(page)


def _numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """Read numbers with commas between them.

    Args:
        name: of the option.
        text: what it was given.
        kind: of the numbers.

    Raises:
        DyntsError: the text holds something else.
    """
    from dynts.errors import DyntsError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise DyntsError(f"--{name} must be numbers with commas between them, got {text!r}") from error
