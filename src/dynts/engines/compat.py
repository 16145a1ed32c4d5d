"""What a plugin needs of an engine: methods that are as it knows them, and settings that it supports."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from dynts.errors import UnsupportedError


def check_signatures(signatures: Mapping[str, str], engine: str, fix: str) -> None:
    """Refuse an engine whose functions are not those that a plugin overrides or relies on.

    Args:
        signatures: dotted names of functions and methods, with their parameters.
        engine: its name and version, for the message.
        fix: what to do, likewise.

    Raises:
        UnsupportedError: names the function that has changed.
    """
    for name, expected in signatures.items():
        found = _engines_own(name)
        parameters = " ".join(inspect.signature(found).parameters) if found else "no such function"
        if parameters != expected:
            raise UnsupportedError(
                f"{name} of {engine} takes ({parameters}), the dynts plugin expects ({expected}): {fix}"
            )


def refuse(reasons: Mapping[str, object], instead: str = "") -> None:
    """Refuse what a plugin does not support.

    Args:
        reasons: what is not supported, and what to do, with whether that is the case.
        instead: what else to do.

    Raises:
        UnsupportedError: names the first that is the case.
    """
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError(f"dynts does not support {reason}{instead}")


def _engines_own(name: str) -> Callable[..., Any] | None:
    """The engine's function of this name, where a class of the plugin may have taken its class's place."""
    place, attribute = name.rsplit(".", 1)
    try:
        owner = pkgutil.resolve_name(place)
    except (ImportError, AttributeError):
        return None
    for kind in getattr(owner, "__mro__", (owner,)):
        if attribute in vars(kind) and not getattr(kind, "__module__", "").startswith("dynts."):
            found = vars(kind)[attribute]
            return getattr(found, "__func__", found)
    return None
