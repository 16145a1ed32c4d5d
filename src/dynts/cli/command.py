"""Commands made of dataclasses: every field that `dynts.options` declares becomes an option of the command."""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

from dynts.cli.console import Continues, console
from dynts.options import Option, build, flag_of, option, options_of, read_settings


@dataclass(frozen=True, slots=True)
class Common:
    """Options that every command has."""

    settings: Path | None = option(
        None,
        help="Take method, predictor, budget, think markers and the like from this file, as `dynts tune` writes it; "
        "options given explicitly win.",
    )
    debug: bool = option(False, switch=True, envvar="DYNTS_DEBUG", help="Print the traceback of an error too.")
    quiet: bool = option(
        False, switch=True, envvar="DYNTS_QUIET", help="Show no progress, and no remarks that warn of nothing."
    )


class ListedCommand(TyperCommand):
    """A command as `dynts --help` lists it: its options are made when it is called, since most are not."""

    function: Callable[..., None]

    @functools.cached_property
    def made(self) -> TyperCommand:
        """The command itself."""
        return make_command(self.function)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the command's arguments."""
        return self.made.make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        return self.made.invoke(ctx)


def add_command(app: typer.Typer, function: Callable[..., None], name: str, panel: str | None = None) -> None:
    """Add a command whose options are those of a function's first argument.

    Args:
        app: the command belongs to.
        function: takes an instance of a dataclass; if it has a second argument, that is the names of the options given
            on the command line.
        name: of the command.
        panel: under which the command is listed.
    """

    def listed() -> None: ...

    listed.__doc__ = help_of(function)
    kind = type("ListedCommand", (ListedCommand,), {"function": staticmethod(function)})
    app.command(name, cls=kind, rich_help_panel=panel)(listed)


def make_command(function: Callable[..., None]) -> TyperCommand:
    """Return a command whose options are those of a function's first argument, see `add_command`."""
    kind = options_type(function)
    options, common = options_of(kind), options_of(Common)

    def run(context: typer.Context, **values: Any) -> None:
        asked = build(Common, values)
        again = "run the same command again to continue" if issubclass(kind, Continues) else ""
        with console(debug=asked.debug, quiet=asked.quiet, again=again):
            chosen: Any = build(kind, values)
            sources = {name: context.get_parameter_source(name) for name in options}
            given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
            function(chosen, *([given] if len(inspect.signature(function).parameters) > 1 else []))

    settable = {name: own for name, own in (options | common).items() if name != "settings"}

    def take_settings(context: typer.Context, path: Path | None) -> Path | None:
        """Let the file give the defaults of the options of the same names, so that options given explicitly win."""
        from dynts.errors import DyntsError

        if path is not None:
            try:
                context.default_map = read_settings(path, settable, set(_names(context.find_root().command)))
            except DyntsError as error:
                raise typer.BadParameter(str(error)) from error
        return path

    class Command(TyperCommand):
        """Options may stand without a value, which typer cannot declare."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Put in what such an option means."""
            alone = {flag_of(name): own.alone for name, own in options.items() if own.alone}
            following = [*args[1:], "-"][: len(args)]
            for index, (word, after) in enumerate(zip(args, following, strict=True)):
                if word in alone and after.startswith("-"):
                    args = [*args[:index], f"{word}={alone[word]}", *args[index + 1 :]]
            return super().parse_args(ctx, args)

    parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += [_parameter(name, own) for name, own in options.items()]
    parameters += [
        _parameter(name, own, **({"callback": take_settings, "is_eager": True} if name == "settings" else {}))
        for name, own in common.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = help_of(function)
    app = typer.Typer(add_completion=False)
    app.command(cls=Command)(run)
    return typer.main.get_command(app)  # type: ignore[return-value]


def help_of(function: Callable[..., None]) -> str:
    """Return a command's help, its docstring, a line each paragraph: typer lists commands by the first line."""
    return "\n\n".join(" ".join(each.split()) for each in (inspect.getdoc(function) or "").split("\n\n"))


def options_type(function: Callable[..., None]) -> type:
    """Return the dataclass that holds a command's options: the type of its function's first argument."""
    return next(iter(get_type_hints(function).values()))


def _parameter(name: str, own: Option, **more: Any) -> Parameter:
    """Return the parameter of a function that typer makes this option of."""
    facts = {"help": own.help, "metavar": own.metavar, "min": own.least, "max": own.most, "envvar": own.envvar, **more}
    default = ... if own.default is MISSING else own.default
    if isinstance(default, tuple):
        default = list(default)
    if own.positional:
        declared = typer.Argument(default, **facts)
    else:
        twins = own.kind is bool and not own.switch  # typer names both itself
        declared = typer.Option(default, *([] if twins else [flag_of(name)]), **facts)
    kind = own.kind | None if own.optional else own.kind
    return Parameter(name, Parameter.KEYWORD_ONLY, default=declared, annotation=kind)


def _names(command: Any) -> Iterator[str]:
    """Yield the names of the options of all commands below one."""
    for below in getattr(command, "commands", {}).values():
        yield from options_of(options_type(below.function)) if isinstance(below, ListedCommand) else _names(below)
