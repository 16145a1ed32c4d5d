"""Errors that users can act on: each message names the value, the limit and the fix."""


class DyntsError(ValueError):
    """A setting, argument or file that dynts cannot use."""


class UnsupportedError(DyntsError, NotImplementedError):
    """Something dynts could not do exactly, and therefore refuses to do at all."""
