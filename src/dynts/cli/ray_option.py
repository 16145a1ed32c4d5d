"""The option --ray, which may stand alone or be followed by an address."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Spread the work over the actors of a Ray cluster: of the one at ADDRESS, or of one started here.",
    ),
]
Actors = Annotated[
    int | None, typer.Option(help="With --ray: how many actors (default: one for each GPU, or machine).")
]
GpusPerActor = Annotated[
    float | None, typer.Option(help="With --ray: GPUs of each actor (default: 1 if the cluster has any).")
]


class RayCommand(TyperCommand):
    """A command whose --ray needs no value, which typer cannot declare."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the address of a local cluster where none is given."""
        for index, argument in enumerate(args):
            if argument == "--ray" and (index + 1 == len(args) or args[index + 1].startswith("-")):
                args = [*args[:index], "--ray=local", *args[index + 1 :]]
        return super().parse_args(ctx, args)
