"""The journal of a job: finished work, a JSON object a line, each on the disk before anything else happens."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dynts.errors import DyntsError
from dynts.store.files import sync_folder, write_through, writing_to
from dynts.store.jsonlines import parse_object

log = logging.getLogger(__name__)

T = TypeVar("T")


class Journal:
    """Appends rows to a file, which is made, or continued, with the first of them. Only for who holds the folder.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._file: BinaryIO | None = None

    @property
    def size(self) -> int:
        """Return how many bytes the file has."""
        return 0 if self._file is None else self._file.tell()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it is on the disk when this returns.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        with writing_to(self.path.parent):
            if self._file is None:
                self._file = self.path.open("a+b")
                self._file.seek(0)
                # a line that was cut off must not become the start of the next
                self._file.truncate(self._file.read().rfind(b"\n") + 1)
                sync_folder(self.path.parent)
            write_through(self._file, json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.rows += 1

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()


def read_journal(path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Read the rows of a journal, which somebody may be writing.

    A line that is damaged, or was cut off when the process or the machine stopped, is left out: its work is lost and
    will be done again.

    Args:
        path: the file.
        parse: makes something of a row's fields; may raise TypeError, KeyError or DyntsError.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = parse(parse_object(line.decode(), "the line"))
            except (DyntsError, UnicodeDecodeError, TypeError, KeyError) as error:
                log.warning("%s, line %d is damaged and left out (%s)", path, number, error)
            else:
                yield row
