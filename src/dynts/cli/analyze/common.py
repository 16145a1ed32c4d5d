"""What the analyses have in common: their options, and how they start, load and end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    model: str,
    gguf_file: str | None,
    dtype: str | None,
    device: str,
    revision: str | None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer, after the checks of traces and folder that need neither."""
    from dynts.models import load_model
    from dynts.store.manifest import make_folder
    from dynts.store.torchrun import this_rank

    _ = sets.sha256
    make_folder(out, made_by)
    return load_model(model, gguf_file=gguf_file, dtype=dtype, device=this_rank().device(device), revision=revision)


def describe(loaded: "PreTrainedModel", model: str, gguf_file: str | None) -> dict[str, Any]:
    """The model, for the manifest."""
    from dynts.predictor.fingerprint import fingerprint

    dtype = str(loaded.dtype).removeprefix("torch.")
    return {"model": shown_name(model, gguf_file), "fingerprint": fingerprint(loaded), "dtype": dtype}


def shown_name(model: str, gguf_file: str | None) -> str:
    """The model, for readers."""
    return f"{model}/{gguf_file}" if gguf_file else model


def complete(rows: list[dict[str, Any]], total: int) -> bool:
    """Whether all traces are measured; otherwise other processes of the job still work, and the last one reports."""
    if len(rows) < total:
        print(f"{len(rows)} of {total} traces are measured; the process that measures the last one writes the page")
    return len(rows) == total
