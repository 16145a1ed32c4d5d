"""Packages that only some commands need."""

from importlib.util import find_spec

from dynts.errors import DyntsError

DISTRIBUTION = "dynts-kv"
"""What pip calls this package. `dynts` on PyPI is another project, so an import name is no name to install by."""


def pip_install(extra: str) -> str:
    """Return the command that installs an extra of this package, and its form within a clone."""
    return f"pip install '{DISTRIBUTION}[{extra}]' (in a clone of dynts: pip install '.[{extra}]')"


def installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def need(package: str, extra: str, purpose: str) -> None:
    """Refuse to go on without an optional package.

    Args:
        package: its import name.
        extra: of dynts that installs it.
        purpose: what needs it, for the message.

    Raises:
        DyntsError: names the pip command that installs it.
    """
    if not installed(package):
        raise DyntsError(f"{purpose} needs {package}: {pip_install(extra)}")
