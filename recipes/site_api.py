"""Extensions of griffe for the site: what a reader of the API wants to see of the source."""

import griffe

DECLARE = ("option", "part")
"""Functions of `dynts.options` whose first argument is a field's default."""


class OptionDefaults(griffe.Extension):
    """Reads `option(5000, help=...)` as 5000."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: object) -> None:
        """Put the declared default in the call's place; a field without one has none."""
        call = attr.value
        if isinstance(call, griffe.ExprCall) and str(call.function) in DECLARE:
            first = next(iter(call.arguments), None)
            attr.value = None if isinstance(first, griffe.ExprKeyword) else first


class NamesAtHome(griffe.Extension):
    """Shows a name where it is defined, and not again where a package passes it on."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Forget what modules list in `__all__`; public is then what has no underscore and is not imported."""
        waiting = [pkg]
        while waiting:
            module = waiting.pop()
            module.exports = None
            waiting += [found for found in module.modules.values() if not found.is_alias]
