"""Options declared on the dataclass fields that they fill: commands, settings files and documentation read them there.

A field is declared once, with its help. A dataclass takes over the options of another as a `part`, and says where its
own differ, or are left out:

    temperature: float = option(0.6, help="Sampling temperature; 0 decodes greedily.")
    sampling: Sampling = part(seed="Seed of the sampling and of the draw of --limit.", top_k=None)
"""

import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from dynts.errors import DyntsError
from dynts.store.jsonlines import read_object

T = TypeVar("T")


class Option(NamedTuple):
    """One option of the command line.

    Attributes:
        help: what it does.
        default: on the command line; MISSING where it must be given.
        kind: its type on the command line, without None.
        flag: such as "--model", where it is not that of the field's name.
        positional: it is an argument, not an option.
        switch: it can be switched on only; other options of two values have a --no- twin.
        named: its values are NAME=VALUE, the field is a mapping.
        read: makes the field's value of what the command line gives.
        alone: what it means without a value.
        metavar: what stands for its value.
        least: smallest number.
        most: largest number.
        envvar: environment variable that gives it too.
    """

    help: str
    default: Any = MISSING
    kind: Any = None
    flag: str | None = None
    positional: bool = False
    switch: bool = False
    named: bool = False
    read: Callable[[Any], Any] | None = None
    alone: str | None = None
    metavar: str | None = None
    least: int | None = None
    most: int | None = None
    envvar: str | None = None

    @property
    def optional(self) -> bool:
        """Whether it may be None, which it then is where it is not given."""
        return self.default is None


def option(default: Any = MISSING, *, factory: Any = MISSING, **facts: Any) -> Any:
    """Declare a dataclass field that an option fills.

    Args:
        default: of the field; of the option too, unless `command_line` is given.
        factory: makes the field's default, instead.
        facts: attributes of `Option`; `command_line` is the default on the command line, where that is another one.
    """
    shown = facts.pop("command_line", default if factory is MISSING else None)
    metadata = {"option": Option(default=None if shown == () else shown, **facts)}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def part(default: Any = MISSING, **changes: str | Mapping[str, Any] | None) -> Any:
    """Declare a dataclass field that is itself a dataclass, whose options are taken over.

    A field that may be None is None where the first of its options is not given.

    Args:
        default: of the field.
        changes: by field name: another help, other attributes of the `Option`, or None to leave the option out.
    """
    return field(default=default, metadata={"part": changes})


def options_of(kind: type) -> dict[str, Option]:
    """Return the options of a dataclass and of its parts, by name."""
    return {name: own for filled in _walk(kind) for name, own in filled.options.items()}


def flag_of(name: str) -> str:
    """Return how an option of that name is given on the command line."""
    return f"--{name.replace('_', '-')}"


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass of what the command line gives.

    Args:
        kind: the dataclass.
        values: of its options, by name; a field without its option takes its default.

    Raises:
        DyntsError: a dataclass refuses its values.
    """
    given: dict[str, Any] = {}
    for filled in _walk(kind):  # type: ignore[arg-type]  # mypy does not know that it is hashable
        item, own = filled.field, {name: values[name] for name in filled.options if name in values}
        if filled.part is not None:
            missing = filled.optional and own.get(next(iter(filled.options))) is None
            given[item.name] = None if missing else build(filled.part, own)
        elif own:
            [(name, value)] = own.items()
            given[item.name] = _field_value(item, name, filled.options[name], value)
    return kind(**given)


def read_settings(path: str | Path, options: Mapping[str, Option], known: Collection[str] = ()) -> dict[str, Any]:
    """Read a settings file: an object with values of options by their names.

    Args:
        path: the file.
        options: that may be set, by name.
        known: names of further options, which are of others and are left out.

    Returns:
        The values that are set, as the command line gives them.

    Raises:
        DyntsError: the file cannot be read, a setting is unknown or has a wrong type; it is named.
    """
    return check_values(str(path), read_object(path), options, known)


def check_values(
    where: str, values: Mapping[str, Any], options: Mapping[str, Option], known: Collection[str] = ()
) -> dict[str, Any]:
    """Return values of options as the command line gives them, those that are None left out.

    Args:
        where: they stand, for messages.
        values: of JSON's types, by name.
        options: that may be set, by name.
        known: names of further options, which are of others and are left out.

    Raises:
        DyntsError: a setting is unknown or has a wrong type; it is named.
    """
    if unknown := [name for name in values if name not in options and name not in known]:
        raise DyntsError(f"{where}: unknown setting {', '.join(unknown)}: the settings are {', '.join(options)}")
    found = {name: _setting(f"{where}: {name}", options[name], values[name]) for name in values if name in options}
    return {name: value for name, value in found.items() if value is not None}


class _Filled(NamedTuple):
    """A field that options fill: with a part, all of that dataclass, which is None without them if it is optional."""

    field: Field[Any]
    part: Any
    optional: bool
    options: dict[str, Option]


@functools.cache
def _walk(kind: Any) -> list[_Filled]:
    """Return the fields of a dataclass that options fill."""
    hints, found = get_type_hints(kind), []
    for item in fields(kind):
        hint, *rest = sorted(_alternatives(hints[item.name]), key=lambda each: each is type(None))
        if "option" in item.metadata:
            own: Option = item.metadata["option"]
            if own.kind is None:
                listed: Any = list[get_args(hint)[0]] if get_origin(hint) is tuple else hint  # type: ignore[misc]
                own = own._replace(kind=listed)
            found.append(_Filled(item, None, bool(rest), {_name(item.name, own): own}))
        elif "part" in item.metadata:
            changes = item.metadata["part"]
            if unknown := changes.keys() - set(_field_names(hint)):
                raise TypeError(f"{hint.__name__} has no options {', '.join(sorted(unknown))}")
            options = dict(_changed(hint, changes))
            if rest:
                first = next(iter(options))
                options[first] = options[first]._replace(default=None)
            found.append(_Filled(item, hint, bool(rest), options))
    return found


def _field_names(kind: Any) -> Iterator[str]:
    for filled in _walk(kind):
        yield from [filled.field.name] if filled.part is None else _field_names(filled.part)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if type(None) in get_args(hint) else (hint,)


def _changed(kind: Any, changes: Mapping[str, Any]) -> Iterator[tuple[str, Option]]:
    """Yield the options of a part with the changes that the dataclass around it makes, by field name."""
    for filled in _walk(kind):
        if filled.part is not None:
            yield from _changed(filled.part, {**filled.field.metadata["part"], **changes})
            continue
        facts = changes.get(filled.field.name, {})
        for name, own in filled.options.items() if facts is not None else ():
            yield name, own._replace(**({"help": facts} if isinstance(facts, str) else facts))


def _field_value(item: Field[Any], name: str, own: Option, value: Any) -> Any:
    if own.named:
        return _named_values(flag_of(name), value or [])
    if own.read is not None:
        return None if value is None else own.read(value)
    if value is None and item.default == ():
        return ()
    return tuple(value) if isinstance(value, list) else value


def _named_values(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, where a value is JSON or else text.

    Raises:
        DyntsError: one has no name, or is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals:
            raise DyntsError(f"{flag} takes NAME=VALUE, such as enable_thinking=false, got {text!r}")
        if name in found:
            raise DyntsError(f"{flag} gives {name!r} twice: drop one")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _setting(name: str, own: Option, value: Any) -> Any:
    """Return a value of a settings file as the command line gives it.

    Raises:
        DyntsError: it has a wrong type.
    """
    if value is None and own.default in (None, MISSING):
        return None
    given = value
    if own.named:
        accepted, meant = isinstance(value, dict), "an object"
    elif get_origin(own.kind) is list:
        item = get_args(own.kind)[0]
        value = value if isinstance(value, list) else [value]
        # an option that may be repeated, and splits its text, takes a number too
        checked = [_is(item, each) or (item is str and _is(float, each)) for each in value]
        accepted, meant = all(checked), f"{_meant(item)}, or a list of such"
    else:
        accepted, meant = _is(own.kind, value), _meant(own.kind)
    if not accepted:
        raise DyntsError(f"{name} must be {meant}{' or null' if own.optional else ''}, got {given!r}")
    if own.named:
        return [f"{key}={json.dumps(each)}" for key, each in value.items()]
    return [str(each) for each in value] if isinstance(value, list) else value


def _is(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, int) if kind is int else isinstance(value, int | float if kind is float else str)


def _meant(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")


def _name(field_name: str, own: Option) -> str:
    return field_name if own.flag is None else own.flag.removeprefix("--").replace("-", "_")
