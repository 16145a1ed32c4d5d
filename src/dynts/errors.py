"""Errors that users can act on: each message names the value, the limit and the fix."""


class DyntsError(ValueError):
    """A setting, argument or file that dynts cannot use."""


def check_count(name: str, value: object, least: int = 0) -> None:
    """Refuse what is not a whole number of at least `least`.

    Args:
        name: of the setting.
        value: what was given.
        least: the limit.

    Raises:
        DyntsError: names the setting, its value and the limit.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DyntsError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_text(name: str, text: str) -> None:
    """Refuse halves of surrogate pairs, which can neither be written nor tokenized.

    Arguments that are not UTF-8 hold some too.

    Args:
        name: of the text, for the message.
        text: the text.

    Raises:
        DyntsError: names the text and the first half.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DyntsError(f"{name}: {half} is half of a surrogate pair and no character: replace it") from error


class UnsupportedError(DyntsError, NotImplementedError):
    """Something dynts could not do exactly, and therefore refuses to do at all."""
