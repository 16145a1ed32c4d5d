"""Files that carry their final name are whole."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dynts.errors import DyntsError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside it and rename it; on failure nothing is left.

    Args:
        path: the final name.
        write: writes to the path that it is given.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, all or nothing.

    Args:
        path: of the file.
        text: all of it.

    Raises:
        DyntsError: it cannot be written; see `writing_to`.
    """
    with writing_to(path.parent):
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def file_sha256(path: Path) -> str:
    """Hash a file's bytes, read a piece at a time."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_through(stream: BinaryIO, data: bytes) -> None:
    """Write to an open file, and through to the disk.

    Args:
        stream: the file.
        data: what to write.
    """
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Write a file's content through to the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make new and renamed entries of a folder durable, where the system lets one open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Name the way out where a disk is full or not writable.

    Raises:
        DyntsError: it is.
    """
    try:
        yield
    except OSError as error:
        raise DyntsError(
            f"cannot write to {folder} ({error}): make room or choose another folder, then run the same command again"
        ) from error
