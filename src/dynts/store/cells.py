"""The value of a cell as text, whatever file it comes from: gold answers, ids and columns are often no text there."""

import json
from datetime import date, time
from decimal import Decimal
from typing import Any

from dynts.errors import DyntsError

_MOST_DIGITS = 4300
"""As many as Python reads of a whole number: 1e999999999 would be written with a billion zeros."""


def cell_text(value: object, where: str) -> str | None:
    """Return what a cell says, as text; None where it says nothing: null, NaN, an empty list.

    Numbers are plain decimals with all their digits: `1e-05`, as Python writes it, means e minus 5 in mathematics. A
    list of one item is that item.

    Args:
        value: of the cell.
        where: it stands, for messages.

    Raises:
        DyntsError: it is several values, an object, bytes, or a number that cannot be written out.
    """
    while isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | date() | time():
            return str(value)
        case float() | Decimal():
            return _decimal(Decimal(repr(value)) if isinstance(value, float) else value, where)
        case list():
            kind = f"a list of {len(value)}"
        case dict():
            kind = "an object"
        case _:
            kind = type(value).__name__
    raise DyntsError(
        f"{where} must be one text or number, got {kind}: write as text what is meant, or leave the row out"
    )


def column_text(value: object, where: str) -> str | None:
    """Return what the cell of a column says that is only kept: lists and objects are written as JSON.

    Args:
        value: of the cell.
        where: it stands, for messages.

    Raises:
        DyntsError: bytes, or a number that cannot be written out.
    """
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=_json_value)
    return cell_text(value, where)


def _decimal(number: Decimal, where: str) -> str | None:
    if number.is_nan():
        return None
    if number.is_infinite() or abs(number.adjusted()) > _MOST_DIGITS:
        raise DyntsError(f"{where} holds the number {number}, which has no decimals: write as text what is meant")
    return f"{number:f}"


def _json_value(value: object) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)
