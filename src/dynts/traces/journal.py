"""The journal: finished work, one JSON line each, on disk before anything else happens."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dynts.errors import DyntsError
from dynts.store.files import sync_folder, write_through
from dynts.store.jsonlines import parse_object
from dynts.traces.record import TraceRow, from_columns


class Journal:
    """Appends rows to a file; each is on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        # exclusive: a journal is written by one process in one go, leftovers are rolled up and never continued
        self._file = path.open("xb")
        sync_folder(path.parent)

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def append(self, row: TraceRow) -> None:
        """Write one trace through to the disk."""
        self.append_object(row.columns())

    def append_object(self, row: Mapping[str, Any]) -> None:
        """Write one row of another kind through to the disk."""
        write_through(self._file, json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.rows += 1

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_journal(path: Path) -> Iterator[TraceRow]:
    """The traces of a journal."""
    for row in read_rows(path):
        try:
            trace = from_columns(row)
        except TypeError:  # a line of another kind
            continue
        yield trace


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal. A line that is cut off or no JSON was being written when the process or the
    machine stopped; its row is lost and will be made again.
    """
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                with suppress(DyntsError, UnicodeDecodeError):
                    yield parse_object(line.decode(), str(path))
