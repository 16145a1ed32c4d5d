"""Figures: one look for each method, told apart without colours too, saved whole in the format that the name asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from dynts.errors import DyntsError
from dynts.evaluate.metrics import base_name
from dynts.report.groups import plain_first
from dynts.store.files import write_whole


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, all or nothing; the ending of `path` chooses the format, PNG without one.

    The same figure gives the same SVG: neither dates nor random ids are in it.
    """
    undated = {"Date": None} if _format(path) == "svg" else None
    with rc_context({"svg.hashsalt": path.name}):
        write_whole(path, lambda partial: figure.savefig(partial, format=_format(path), dpi=150, metadata=undated))


def check_format(path: Path) -> None:
    """Refuse an ending that names no picture format.

    Raises:
        DyntsError: names the endings that do.
    """
    known = Figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise DyntsError(f"cannot draw {path}: let it end in .png, .svg, .pdf or another of {', '.join(sorted(known))}")


def _format(path: Path) -> str:
    return path.suffix[1:].lower() or "png"


WIDTH = 6.5
"""Inches."""
SMALL = 8
"""Points."""

# colours of Okabe and Ito (2008) and of Paul Tol's muted scheme, chosen for colour-blind readers
_LOOKS = {
    "full": ("#000000", "s"),
    "dynts": ("#0072B2", "o"),
    "dynts-random": ("#56B4E9", "v"),
    "dynts-bottom": ("#332288", "^"),
    "window": ("#888888", "h"),
    "streaming-llm": ("#CC79A7", "<"),
    "question-window": ("#E69F00", ">"),
    "sepllm": ("#999933", "P"),
    "h2o": ("#009E73", "D"),
    "snapkv": ("#D55E00", "X"),
    "rkv": ("#882255", "*"),
}
_OTHER = ("#44AA99", "p")
_LINES = ("-", "--", ":", "-.")
_HATCHES = ("", "////", "....", "xxxx")


@dataclass(frozen=True, slots=True)
class Look:
    """How a method is drawn."""

    colour: str
    marker: str
    line: str
    hatch: str
    filled: bool


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """A look for each method; variants of one method share colour and marker, and differ in line and filling.

    Args:
        methods: all that a report shows, so that it shows them alike everywhere.
    """
    variants: dict[str, int] = {}
    found = {}
    for method in sorted(set(methods), key=plain_first):
        base = base_name(method)
        number = variants.setdefault(base, 0)
        variants[base] += 1
        colour, marker = _LOOKS.get(base, _OTHER)
        kind = number % len(_LINES)
        found[method] = Look(colour, marker, _LINES[kind], _HATCHES[kind], filled=kind == 0)
    return found
