"""The `dynts` command. Heavy imports happen inside the commands, so that `dynts --help` answers at once."""

import sys
from typing import Annotated

import typer

import dynts
from dynts.cli.generate import generate
from dynts.cli.label import label
from dynts.cli.train import train

app = typer.Typer(
    name="dynts",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(label)
app.command()(train)


def _version(wanted: bool) -> None:
    if wanted:
        print(dynts.__version__)
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode with large reasoning models under a fixed KV cache budget (dynamic thinking-token selection)."""


def main() -> None:
    """Run the command line; errors that a user can act on end in one line on stderr and exit code 2."""
    from dynts.errors import DyntsError

    try:
        app()
    except DyntsError as error:
        print(f"dynts: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dynts: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        print(f"dynts: {error}", file=sys.stderr)
        sys.exit(2)
