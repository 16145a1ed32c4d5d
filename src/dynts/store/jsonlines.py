"""Read JSON and JSON Lines, naming file and line of whatever is wrong."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dynts.errors import DyntsError, check_text

ParseFloat = Callable[[str], Any]
"""What becomes of a number with a point or an exponent: `float`, or `Decimal`, which keeps its digits."""


def read_objects(path: str | Path, parse_float: ParseFloat = float) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number, from 1, and object of each line, one line in memory at a time; blank lines are skipped.

    Args:
        path: of the file.
        parse_float: what becomes of numbers with a point or an exponent.

    Raises:
        DyntsError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield number, parse_object(line, f"{path}, line {number}", parse_float)


def read_json(path: str | Path, parse_float: ParseFloat = float) -> Any:
    """Read a file of one JSON value.

    Args:
        path: of the file.
        parse_float: what becomes of numbers with a point or an exponent.

    Raises:
        DyntsError: the file cannot be read, or is not valid JSON.
    """
    return parse_json("".join(line for _, line in read_lines(path)), str(path), parse_float)


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a file of one JSON object.

    Raises:
        DyntsError: the file cannot be read, or is not a JSON object.
    """
    return _check_object(read_json(path), str(path))


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line of a file in UTF-8, with its line break, without a byte order mark.

    Raises:
        DyntsError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        # as bytes: only "\n" ends a line there, and JSON strings may hold other line separators
        with Path(path).open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DyntsError(f"cannot read {path}, line {number}: {error}; save it as UTF-8") from error
                yield number, text
    except OSError as error:
        raise DyntsError(f"cannot read {path}: {error}") from error


def parse_object(text: str, where: str, parse_float: ParseFloat = float) -> dict[str, Any]:
    """Read a text of one JSON object; see `parse_json`.

    Args:
        text: the JSON.
        where: it stands, for messages.
        parse_float: what becomes of numbers with a point or an exponent.
    """
    return _check_object(parse_json(text, where, parse_float), where)


def parse_json(text: str, where: str, parse_float: ParseFloat = float) -> Any:
    """Read a text of one JSON value.

    Args:
        text: the JSON.
        where: it stands, for messages.
        parse_float: what becomes of numbers with a point or an exponent.

    Raises:
        DyntsError: it is not valid JSON, or holds what cannot be worked with: halves of surrogate pairs, which can
            neither be written nor tokenized, numbers of thousands of digits, a field twice in one object, too many
            levels.
    """
    try:
        value = json.loads(text, parse_float=parse_float, object_pairs_hook=_object)
        written = json.dumps(value, ensure_ascii=False, default=str)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DyntsError(f"{where}: not valid JSON ({error.msg} at {line}column {error.colno})") from error
    except RecursionError as error:
        raise DyntsError(f"{where}: the JSON has too many levels of lists and objects") from error
    except DyntsError as error:
        raise DyntsError(f"{where}: {error}") from error
    except (ValueError, ArithmeticError) as error:  # of int() and Decimal()
        digits = sys.get_int_max_str_digits()
        raise DyntsError(f"{where}: a number has more than {digits} digits: write it as text") from error
    check_text(where, written)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DyntsError(f"field {name!r} stands twice in one object: leave one out")
        found[name] = value
    return found


def _check_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DyntsError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value
