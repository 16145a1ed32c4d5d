"""Packages that only some commands need."""

from importlib.util import find_spec

from dynts.errors import DyntsError


def need(package: str, extra: str, purpose: str) -> None:
    """Refuse to go on without an optional package.

    Raises:
        DyntsError: names the pip command that installs it.
    """
    if find_spec(package) is None:
        raise DyntsError(f"{purpose} needs {package}: pip install 'dynts[{extra}]'")
