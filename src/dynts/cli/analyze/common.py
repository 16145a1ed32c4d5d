"""What the analyses have in common: how they start, load and end."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynts.cli.console import load_libraries, show

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynts.config import ModelSource
    from dynts.traces.sets import TraceSets

WORK_OUT = "Folder of its own, for page, numbers, picture and rows. The same command continues."
FIT: dict[str, Any] = {
    **dict.fromkeys(("labels", "future_window", "all_tokens", "tokens_per_trace", "store_dtype")),
    "max_tokens": "Leave out longer traces, prompt and answer included.",
    "keep_incorrect": {"switch": True},
    "limit": "Take the first fit traces only, this many.",
}
"""Which options of `LabelOptions` say what traces an analysis takes, for `part`."""


def prepare(out: Path) -> None:
    """Refuse to start what could not be drawn or stored.

    Raises:
        DyntsError: matplotlib is missing, or there is a file in the folder's place.
    """
    from dynts.extras import need

    need("matplotlib", "plot", "the picture of an analysis")
    load_libraries("dynts.report.folder")
    from dynts.report.folder import check_out

    check_out(out)


def load(
    out: Path, made_by: str, sets: "TraceSets", source: "ModelSource"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model and tokenizer, after the checks of traces and folder that need neither.

    Args:
        out: the analysis' folder.
        made_by: the command, for messages.
        sets: the traces.
        source: the model.

    Raises:
        DyntsError: traces that cannot be read, a folder that cannot be made, or a model that cannot be loaded.
    """
    from dynts.models import load_model
    from dynts.store.manifest import make_folder

    _ = sets.sha256
    make_folder(out, made_by)
    return load_model(source.on_this_rank())


def describe(loaded: "PreTrainedModel", source: "ModelSource") -> dict[str, Any]:
    """Return what the manifest says of the model.

    Args:
        loaded: the model.
        source: where it is from.
    """
    from dynts.predictor.fingerprint import fingerprint

    dtype = str(loaded.dtype).removeprefix("torch.")
    return {"model": source.path, "fingerprint": fingerprint(loaded), "dtype": dtype}


def complete(rows: list[dict[str, Any]], total: int) -> bool:
    """Return whether all traces are measured; else other processes of the job still work, and the last one reports.

    Args:
        rows: of the traces that are measured.
        total: how many there will be.
    """
    if len(rows) < total:
        show(f"{len(rows)} of {total} traces are measured; the process that measures the last one writes the page")
    return len(rows) == total
