"""Save a trained predictor, all or nothing."""

import shutil
from contextlib import suppress
from pathlib import Path

from dynts.errors import DyntsError
from dynts.predictor.model import CONFIG_FILE, WEIGHTS_FILE, ImportancePredictor


def work_folder(out: Path) -> Path:
    """Where a predictor is made, checkpoints included, before it moves to `out`; removed when it is saved."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


def save_predictor(predictor: ImportancePredictor, out: str | Path, *, overwrite: bool = False) -> None:
    """Save as a folder, all or nothing, and remove the work folder.

    Raises:
        DyntsError: `out` exists and `overwrite` is not set, or it cannot be written.
    """
    out = Path(out)
    check_free(out, overwrite)
    work = work_folder(out)
    new, old = work / "predictor", work / "replaced"
    try:
        shutil.rmtree(new, ignore_errors=True)
        predictor.save_pretrained(new)
        if out.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise DyntsError(f"cannot save the predictor to {out} ({error}): make room or choose another folder") from error
    else:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        # what a checkpoint needs stays
        with suppress(OSError):
            work.rmdir()


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to overwrite a folder unasked, and to delete one that is no predictor.

    Raises:
        DyntsError: names the way out.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG_FILE).is_file() or not (out / WEIGHTS_FILE).is_file():
        raise DyntsError(f"{out} exists and holds something else than a predictor: choose a new folder")
    if not overwrite:
        raise DyntsError(f"{out} already holds a predictor: choose a new folder, or pass --overwrite")
