"""The gold answer inside a data set's answer column."""

from collections.abc import Callable

from dynts.errors import DyntsError
from dynts.grading.boxed import closing_brace


def _whole(text: str) -> str | None:
    return text.strip() or None


def _boxed(text: str) -> str | None:
    """What the last `\\boxed{}` holds, braces matched; MATH writes `\\boxed 5` too."""
    _, found, rest = text.rpartition("\\boxed")
    rest = rest.lstrip()
    if not found or not rest:
        return None
    if not rest.startswith("{"):
        return rest.split("$")[0].split()[0] if rest.split("$")[0].split() else None
    end = closing_brace(rest, 0)
    return None if end is None else rest[1:end].strip() or None


def _hashes(text: str) -> str | None:
    _, found, rest = text.rpartition("####")
    return (rest.strip() or None) if found else None


GOLD: dict[str, Callable[[str], str | None]] = {"whole": _whole, "boxed": _boxed, "hashes": _hashes}
"""Ways to write a gold answer: the whole column, in the last \\boxed{} of a solution (MATH), after the last #### (GSM8K)."""


def check_gold(name: str) -> None:
    """Refuse an unknown way.

    Raises:
        DyntsError: names the choices.
    """
    if name not in GOLD:
        raise DyntsError(f"unknown form of gold answers {name!r}: choose from {', '.join(GOLD)}")
