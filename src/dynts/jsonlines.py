"""Read JSON Lines, naming file and line of whatever is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynts.errors import DyntsError


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and object of each line; blank lines are skipped.

    Raises:
        DyntsError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DyntsError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})"
            raise DyntsError(message) from error
        if not isinstance(row, dict):
            raise DyntsError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        yield number, row
