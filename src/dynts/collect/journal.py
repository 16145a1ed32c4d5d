"""The journal: finished traces, one JSON line each, on disk before anything else happens."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from dynts.collect.row import TraceRow, from_columns
from dynts.files import sync_folder


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
        """Write one row through to the disk."""
        self._file.write(json.dumps(row.columns(), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += 1

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_journal(path: Path) -> Iterator[TraceRow]:
    """The whole lines of a journal. A line that is cut off or no JSON was being written when the process or the
    machine stopped; its trace is lost and will be made again.
    """
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n") and (row := _parse(line)) is not None:
                yield row


def _parse(line: bytes) -> TraceRow | None:
    try:
        return from_columns(json.loads(line))
    except (ValueError, TypeError, AttributeError):
        return None
