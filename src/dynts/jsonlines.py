"""Read JSON Lines, naming file and line of whatever is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynts.errors import DyntsError


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line, one line in memory at a time; blank lines are skipped.

    Raises:
        DyntsError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        # only "\n" ends a line: JSON strings may hold other line separators
        with Path(path).open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _parse(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DyntsError(f"cannot read {path}: {error}") from error


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DyntsError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise DyntsError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row
