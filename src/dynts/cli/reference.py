"""The page of all options, docs/reference/options.md: `make options` writes it."""

from collections.abc import Callable, Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dynts.cli import ANALYSES, PANELS
from dynts.cli.command import Common, help_of, options_type
from dynts.cli.console import show
from dynts.options import Option, flag_of, options_of
from dynts.report.prose import wrap_prose

_KINDS = {int: "number", float: "number", Path: "path", str: "text"}


def reference() -> str:
    """Return the page in Markdown: a table a command."""
    commands = {name: command for panel in PANELS.values() for name, command in panel.items()}
    commands |= {f"analyze {name}": command for name, command in ANALYSES.items()}
    parts = [
        "# Options\n",
        "Written by `make options` from the options' declarations. A settings file (`--settings FILE`) is a JSON "
        "object with values of a command's options, named like them without the dashes and with `_` for `-` "
        '(`{"budget": 3000, "top_p": 0.9}`); options of other commands are left out, and those given '
        "explicitly win.\n\n"
        "What the library says goes through the logger `dynts`, on standard error; results go to standard output. "
        "Progress is shown on standard error where that is a terminal; long jobs write a line now and then elsewhere. "
        "A level above INFO, which is what `--quiet` sets, silences progress too.\n",
        _table("Every command", options_of(Common)),
    ]
    parts += [_section(name, command) for name, command in commands.items()]
    return wrap_prose("\n".join(parts))


def _section(name: str, command: Callable[..., None]) -> str:
    return _table(f"dynts {name}", options_of(options_type(command)), help_of(command).split("\n\n")[0])


def _table(title: str, options: dict[str, Option], summary: str = "") -> str:
    rows = "".join(f"| {_flag(name, own)} | {_default(own)} | {_meaning(own)} |\n" for name, own in options.items())
    head = [f"## {title}", *([summary] if summary else []), "| Option | Default | Meaning |"]
    return "\n\n".join(head) + f"\n| --- | --- | --- |\n{rows}"


def _flag(name: str, own: Option) -> str:
    if own.positional:
        return f"`{own.metavar or name.upper()}`"
    flag = flag_of(name)
    if own.kind is bool:
        return f"`{flag}`" if own.switch else f"`{flag}`, `--no-{flag[2:]}`"
    return f"`{flag}` {own.metavar or ' / '.join(_kinds(own.kind))}"


def _kinds(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from (f"`{value}`" for value in get_args(kind))
    else:
        yield _KINDS[get_args(kind)[0] if get_origin(kind) is list else kind]


def _default(own: Option) -> str:
    if own.default is MISSING:
        return "needed"
    if own.default is None or own.kind is bool:
        return "on" if own.default else ""
    values = own.default if isinstance(own.default, tuple) else (own.default,)
    return ", ".join(f"`{value}`" for value in values)


def _meaning(own: Option) -> str:
    return own.help.replace("|", "\\|") + (f" Also `{own.envvar}` in the environment." if own.envvar else "")


if __name__ == "__main__":
    show(reference(), end="")
