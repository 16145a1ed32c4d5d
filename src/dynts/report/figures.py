"""Figures: one look for each method, told apart without colours too, saved whole in the format of their name."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dynts.errors import DyntsError
from dynts.evaluate.results import ArmResults
from dynts.methods import METHODS
from dynts.store.files import write_text_whole, write_whole

_DPI = 150


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, all or nothing.

    Args:
        figure: the picture.
        path: whose ending chooses the format, PNG without one.
    """
    if _format(path) == "svg":
        write_text_whole(path, draw_svg(figure, path.name))
    else:
        write_whole(path, lambda partial: figure.savefig(partial, format=_format(path), dpi=_DPI))


def draw_svg(figure: Figure, name: str) -> str:
    """Return a picture as SVG; the same figure gives the same text, with neither dates nor random ids in it.

    Args:
        figure: the picture.
        name: of the picture, which its ids are made of.
    """
    text = StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", dpi=_DPI, metadata={"Date": None})
    return text.getvalue()


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


def label_logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times the powers of ten, with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


WIDTH = 6.5
"""Inches."""
SMALL = 8
"""Points."""

# colours of Okabe and Ito (2008) and of Paul Tol's muted scheme, chosen for colour-blind readers, in the order of
# METHODS
_PALETTE = (
    ("#000000", "s"),
    ("#0072B2", "o"),
    ("#44AA99", "p"),
    ("#56B4E9", "v"),
    ("#332288", "^"),
    ("#888888", "h"),
    ("#CC79A7", "<"),
    ("#E69F00", ">"),
    ("#999933", "P"),
    ("#009E73", "D"),
    ("#D55E00", "X"),
    ("#882255", "*"),
    ("#DDCC77", "d"),
    ("#AA4499", "H"),
    ("#117733", "8"),
    ("#661100", "1"),
)
_METHODS = list(METHODS.values())
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


def looks(arms: Iterable[ArmResults]) -> dict[str, Look]:
    """Return a look for each arm's method.

    Variants of one method share colour and marker, and differ in line and filling.

    Args:
        arms: all that a report shows, so that it shows them alike everywhere.

    Returns:
        By the method as shown.
    """
    variants: Counter[int] = Counter()
    found = {}
    for arm in sorted({arm.method: arm for arm in arms}.values(), key=lambda arm: arm.plain_first):
        # of a method that this version does not know any more, the last one
        number = _METHODS.index(arm.kind) % len(_PALETTE) if arm.kind in _METHODS else -1
        colour, marker = _PALETTE[number]
        kind = variants[number] % len(_LINES)
        variants[number] += 1
        found[arm.method] = Look(colour, marker, _LINES[kind], _HATCHES[kind], filled=kind == 0)
    return found
