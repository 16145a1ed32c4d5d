"""What an analysis leaves in its folder: the numbers, and page and picture in two formats each, written whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from matplotlib.figure import Figure

from dynts.errors import DyntsError
from dynts.report.offline import write_page
from dynts.store.files import write_text_whole, writing_to
from dynts.store.progress import bar


def check_out(out: Path) -> None:
    """Refuse a place that cannot become a folder.

    Raises:
        DyntsError: names it.
    """
    if out.exists() and not out.is_dir():
        raise DyntsError(f"{out} is a file, and the results need a folder: choose another --out")


def write_report(out: Path, name: str, record: dict[str, Any], page: Sequence[str], figure: Figure) -> Path:
    """Write `name`.json, .html, .md, .png and .svg; those of an earlier run are replaced.

    Args:
        out: the folder; made if it does not exist.
        name: of the files.
        record: all numbers, for JSON.
        page: paragraphs in Markdown, without the picture.
        figure: the picture.

    Returns:
        The page as one HTML file.

    Raises:
        DyntsError: the disk is full or not writable.
    """
    check_out(out)
    title, *rest = page
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        # processes of one job may end at the same moment
        with FileLock(out / ".report.lock"):
            write_text_whole(out / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            text = "\n\n".join([title, f"![{name}]({name}.png)", *map(str.strip, rest)]) + "\n"
            with bar("drawing"):
                return write_page(out / f"{name}.md", text, {f"{name}.png": figure})
