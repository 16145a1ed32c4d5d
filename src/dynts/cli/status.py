"""`dynts status`: how far a folder of traces or shards is."""

from dataclasses import dataclass
from json import dumps
from pathlib import Path

from dynts.cli.console import show
from dynts.options import option


@dataclass(kw_only=True)
class StatusCommand:
    """What `dynts status` is given."""

    folder: Path = option(
        positional=True, help="Written by dynts collect, dynts import or dynts label; or an arm of dynts eval."
    )
    json: bool = option(False, switch=True, help="Print one JSON object and nothing else.")


def status(given: StatusCommand) -> None:
    """Say how far a folder of traces or shards is, also while a job writes to it."""
    from dynts.store.progress import bar

    with bar("reading"):
        from dynts.collect.status import read_status

        found = read_status(given.folder)
    show(dumps(found.figures()) if given.json else found.describe())
