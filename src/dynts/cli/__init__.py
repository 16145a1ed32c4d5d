"""The `dynts` command. Heavy imports happen inside the commands, so that `dynts --help` answers at once."""

from collections.abc import Callable
from typing import Annotated

import typer

import dynts
from dynts.cli import analyze
from dynts.cli.bench import bench
from dynts.cli.calibrate import calibrate
from dynts.cli.collect import collect
from dynts.cli.command import add_command
from dynts.cli.console import show
from dynts.cli.demo import demo
from dynts.cli.doctor import doctor
from dynts.cli.eval import eval_
from dynts.cli.generate import generate
from dynts.cli.importing import import_
from dynts.cli.label import label
from dynts.cli.plan import plan
from dynts.cli.report import report
from dynts.cli.serve import serve
from dynts.cli.status import status
from dynts.cli.train import train
from dynts.cli.tune import tune
from dynts.cli.view import view

app = typer.Typer(
    name="dynts",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "See it work": {"demo": demo, "doctor": doctor},
    "From problems to a predictor": {
        "collect": collect,
        "import": import_,
        "status": status,
        "label": label,
        "train": train,
        "calibrate": calibrate,
    },
    "Use it": {"plan": plan, "tune": tune, "generate": generate, "serve": serve},
    "Measure and understand": {"eval": eval_, "report": report, "bench": bench, "view": view},
}
"""The commands in the order in which they are used."""
ANALYSES: dict[str, Callable[..., None]] = {
    "importance": analyze.importance,
    "pareto": analyze.pareto,
    "predictor": analyze.predictor,
}

for _panel, _commands in PANELS.items():
    for _name, _command in _commands.items():
        add_command(app, _command, _name, _panel)

_analyze = typer.Typer(
    no_args_is_help=True, help="How importance is spread, what an answer needs of it, and how well it is predicted."
)
for _name, _command in ANALYSES.items():
    add_command(_analyze, _command, _name)
app.add_typer(_analyze, name="analyze", rich_help_panel="Measure and understand")


def _version(wanted: bool) -> None:
    if wanted:
        show(dynts.__version__)
        raise typer.Exit


@app.callback()
def _callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode with large reasoning models under a fixed KV cache budget (dynamic thinking-token selection)."""


def main() -> None:
    """Run the command line."""
    app()
