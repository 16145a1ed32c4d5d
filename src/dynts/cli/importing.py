"""`dynts import`: bring in reasoning traces made elsewhere."""

from dataclasses import dataclass
from pathlib import Path

from dynts.cli.console import Continues, load_libraries, say, show
from dynts.options import option


@dataclass(kw_only=True)
class ImportCommand(Continues):
    """What `dynts import` is given."""

    files: tuple[Path, ...] = option(
        positional=True, help="JSON Lines with question, response, answer and an optional id."
    )
    out: Path = option(help="Folder for the traces. Run the same command again to continue.")
    question_column: str = option("question", help="Field that holds the question.")
    response_column: str = option("response", help="Field that holds what the model wrote.")
    answer_column: str = option("answer", help="Field that holds the gold answer.")
    keep_column: tuple[str, ...] = option((), help="Field to keep with each trace, such as a subject; may be repeated.")
    think_start: str | None = option(None, help="How the model opens its thinking (default: <think>).")
    think_end: str | None = option(None, help="How the model closes its thinking (default: </think>).")


def import_(given: ImportCommand) -> None:
    """Bring in reasoning traces made elsewhere, and grade them.

    Responses may start inside the thinking (DeepSeek-R1), or with the opening marker (Qwen3). Markers of other models
    are given by --think-start and --think-end, such as <thought> and </thought>; of a known pair one is enough.
    """
    load_libraries("dynts.collect.importing")

    from dynts.chat.markers import matching_formats
    from dynts.collect.importing import ImportColumns, import_traces
    from dynts.extras import need
    from dynts.store.progress import Display, describe_counts

    need("pyarrow", "collect", "dynts import")
    markers = matching_formats(given.think_start, given.think_end)[0]
    columns = ImportColumns(given.question_column, given.response_column, given.answer_column, given.keep_column)
    with Display("importing") as display:
        tally = import_traces(given.files, given.out, columns, markers, display)
    if tally.done and tally.dropped["unfinished"] == tally.done:
        say(
            f"WARNING: no response closes its thinking by {markers.end}: give the markers that their model writes by "
            "--think-start and --think-end, and another --out"
        )
    show(f"{tally.done} traces in {given.out}, {tally.correct} correct; unfit: {describe_counts(tally.dropped)}")
