"""`dynts import`: bring in reasoning traces made elsewhere."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def import_(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines with question, response, answer and an optional id.")],
    out: Annotated[Path, typer.Option(help="Folder for the traces. Run the same command again to continue.")],
    question_column: Annotated[str, typer.Option(help="Field that holds the question.")] = "question",
    response_column: Annotated[str, typer.Option(help="Field that holds what the model wrote.")] = "response",
    answer_column: Annotated[str, typer.Option(help="Field that holds the gold answer.")] = "answer",
    keep_column: Annotated[
        list[str] | None, typer.Option(help="Field to keep with each trace, such as a subject; may be repeated.")
    ] = None,
    think_start: Annotated[
        str | None, typer.Option(help="How the model opens its thinking (default: <think>).")
    ] = None,
    think_end: Annotated[
        str | None, typer.Option(help="How the model closes its thinking (default: </think>).")
    ] = None,
) -> None:
    """Bring in reasoning traces made elsewhere, and grade them.

    Responses may start inside the thinking (DeepSeek-R1), or with the opening marker (Qwen3). Markers of other models are
    given by --think-start and --think-end, such as <thought> and </thought>; of a known pair one is enough.
    """
    from dynts.chat.markers import matching_formats
    from dynts.collect.importing import ImportColumns, import_traces
    from dynts.extras import need
    from dynts.store.progress import Display, describe_counts

    need("pyarrow", "collect", "dynts import")
    markers = matching_formats(think_start, think_end)[0]
    columns = ImportColumns(question_column, response_column, answer_column, tuple(keep_column or ()))
    with Display("importing") as display:
        tally = import_traces(files, out, columns, markers, display)
    if tally.done and tally.dropped["unfinished"] == tally.done:
        print(
            f"WARNING: no response closes its thinking by {markers.end}: give the markers that their model writes by "
            "--think-start and --think-end, and another --out",
            file=sys.stderr,
        )
    print(f"{tally.done} traces in {out}, {tally.correct} correct; unfit: {describe_counts(tally.dropped)}")
