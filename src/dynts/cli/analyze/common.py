"""What the analyses have in common: their options, and how they start, load and end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynts.config import ModelSource
    from dynts.traces.sets import TraceSets

Out = Annotated[Path, typer.Option(help="Folder for page, numbers and picture (.md, .json, .png, .svg).")]
WorkOut = Annotated[
    Path, typer.Option(help="Folder of its own, for page, numbers, picture and rows. The same command continues.")
]
Limit = Annotated[int | None, typer.Option(help="Take the first fit traces only, this many.")]
MaxTokens = Annotated[int, typer.Option(help="Leave out longer traces, prompt and answer included.")]
KeepIncorrect = Annotated[
    bool, typer.Option("--keep-incorrect", help="Keep traces whose answer is wrong or cannot be graded.")
]
Chunk = Annotated[int, typer.Option(help="Rows of attention in memory at a time; does not change the result.")]
Label = Literal["answer", "future"]


def prepare(out: Path) -> None:
    """Refuse to start what could not be drawn or stored."""
    from dynts.extras import need

    need("matplotlib", "plot", "the picture of an analysis")
    from dynts.report.folder import check_out

    check_out(out)


def load(
    out: Path,
    made_by: str,
    sets: "TraceSets",
    source: "ModelSource",
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer, after the checks of traces and folder that need neither."""
    from dynts.models import load_model
    from dynts.store.manifest import make_folder

    _ = sets.sha256
    make_folder(out, made_by)
    return load_model(source.on_this_rank())


def describe(loaded: "PreTrainedModel", source: "ModelSource") -> dict[str, Any]:
    """The model, for the manifest."""
    from dynts.predictor.fingerprint import fingerprint

    dtype = str(loaded.dtype).removeprefix("torch.")
    return {"model": source.path, "fingerprint": fingerprint(loaded), "dtype": dtype}


def complete(rows: list[dict[str, Any]], total: int) -> bool:
    """Whether all traces are measured; otherwise other processes of the job still work, and the last one reports."""
    if len(rows) < total:
        print(f"{len(rows)} of {total} traces are measured; the process that measures the last one writes the page")
    return len(rows) == total
