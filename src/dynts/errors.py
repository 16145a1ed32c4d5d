"""Errors that users can act on: each message names the value, the limit and the fix."""


class DyntsError(ValueError):
    """A setting, argument or file that dynts cannot use."""


def check_count(name: str, value: object, least: int = 0) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        DyntsError: names the setting, its value and the limit.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DyntsError(f"{name} must be a whole number of at least {least}, got {value!r}")


class UnsupportedError(DyntsError, NotImplementedError):
    """Something dynts could not do exactly, and therefore refuses to do at all."""
