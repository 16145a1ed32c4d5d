"""`dynts analyze importance`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynts.cli.analyze.common import FIT, WORK_OUT, complete, describe, load, prepare
from dynts.cli.checks import check_chat
from dynts.cli.console import Continues, show, show_page
from dynts.config import ModelSource
from dynts.options import option, part
from dynts.training.config import LabelOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynts.analyze.importance import Importance


@dataclass(kw_only=True)
class ImportanceCommand(Continues):
    """What `dynts analyze importance` is given."""

    out: Path = option(help=WORK_OUT)
    shards: tuple[Path, ...] | None = option(
        None, help="Folder written by `dynts label`; may be repeated. Thinking tokens only."
    )
    traces: tuple[Path, ...] | None = option(
        None, help="Instead: traces as for `dynts label`, which --model labels with their question."
    )
    source: ModelSource | None = part(
        name="Labels --traces; of --shards its tokenizer spells the tokens.", attention=None, open_thinking=None
    )
    label: Literal["answer", "future"] = option("answer", help="Which stored label of --shards.")
    fit: LabelOptions = part(**FIT, seed=None)


def importance(given: ImportanceCommand) -> None:
    """How importance is spread: above the mean, top tokens, question and thinking, position, which tokens.

    From labelled shards; or from traces and a model, which takes a pass per trace and knows about the question too. The
    options from --limit on are for --traces.
    """
    from dynts.errors import DyntsError

    out, source = given.out, given.source
    prepare(out)
    if (given.shards is None) == (given.traces is None):
        raise DyntsError("give either --shards, or --traces with the --model that labels them")
    if given.shards is not None:
        _importance_of_shards(given.shards, given.label, out, source)
        return
    if source is None:
        raise DyntsError("--traces need --model: its attention says how important a token is")
    if given.label != "answer":
        raise DyntsError(
            f"question tokens have the answer label only: leave out --label {given.label}, or give --shards"
        )

    from dynts.analyze.importance import Importance, describe_with_question
    from dynts.analyze.measure import measure_traces
    from dynts.store.progress import Display
    from dynts.traces.sets import as_sets

    sets = as_sets(given.traces or ())
    made_by = "dynts analyze importance"
    check_chat(source, opened=True)
    loaded, tokenizer = load(out, made_by, sets, source)
    with Display("analysing") as display:
        rows, total = measure_traces(
            out,
            made_by,
            describe(loaded, source),
            sets,
            tokenizer,
            given.fit,
            lambda place, trace, tokens: describe_with_question(loaded, tokens, given.fit.chunk),
            display.count,
            source.chat,
        )
    if complete(rows, total):
        about = {"model": source.path, "traces": ", ".join(sets.names), "label": "answer"}
        _write_importance(out, Importance.of(rows), about, tokenizer)


def _importance_of_shards(paths: tuple[Path, ...], label: str, out: Path, source: ModelSource | None) -> None:
    from dynts.analyze.importance import Importance, describe_shards
    from dynts.models import load_tokenizer
    from dynts.training.shards import ShardFolder

    folders = [ShardFolder.open(path) for path in paths]
    tokenizer = None if source is None else load_tokenizer(source)
    found = Importance.of(describe_shards(folders, label))
    _write_importance(out, found, {"shards": ", ".join(map(str, paths)), "label": label}, tokenizer)


def _write_importance(
    out: Path, found: "Importance", source: dict[str, Any], tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    from dynts.report.folder import write_report
    from dynts.report.importance import draw_importance, importance_page, importance_record

    def spell(token: int) -> str:
        return f"#{token}" if tokenizer is None else str(tokenizer.decode([token]))

    page = importance_page(found, source, spell)
    figure = draw_importance(found, spell)
    written = write_report(out, "importance", importance_record(found, source, spell), page, figure)
    show(
        f"{found.traces} traces: {found.above_mean:.1%} of the thinking tokens above the mean, "
        f"the top 20% hold {found.mass_of(0.2):.1%} of the importance"
    )
    show_page(written)
