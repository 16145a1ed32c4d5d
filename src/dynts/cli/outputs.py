"""Check where a command will write before it works for minutes."""

from pathlib import Path


def check_folder(path: Path | None) -> None:
    """Refuse a file whose folder does not exist.

    Raises:
        DyntsError: names the file.
    """
    from dynts.errors import DyntsError

    if path is not None and not path.parent.is_dir():
        raise DyntsError(f"the folder of {path} does not exist: make it or choose another place")


def check_figure(path: Path | None) -> None:
    """Refuse a picture that could not be drawn.

    Raises:
        DyntsError: matplotlib is missing, the folder does not exist, or the ending names no picture format.
    """
    from dynts.extras import need

    if path is None:
        return
    check_folder(path)
    need("matplotlib", "plot", "a picture")
    from dynts.report.figures import check_format

    check_format(path)
