"""`dynts report`: tables, paired tests and figures of evaluated arms."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dynts.cli.options import GraderOption


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Written by dynts eval.")],
    *,
    out: Annotated[Path, typer.Option(metavar="REPORT", help="Folder for page, CSV and figures.")],
    grader: GraderOption = "dynts",
    samples: Annotated[
        bool, typer.Option("--samples", help="Also write every sample as a row of samples.csv.")
    ] = False,
) -> None:
    """Compare what was evaluated: accuracy, length, memory, time and FLOPs by method, with paired tests and figures.

    Arms with another model, sampling or problems come into groups of their own. Folders may still be filling: arms that lack
    samples are marked.
    """
    from dynts.cli.outputs import check_folder
    from dynts.errors import DyntsError
    from dynts.extras import need

    for folder in folders:
        if not folder.is_dir():
            raise DyntsError(f"{folder} is not a folder: give folders written by `dynts eval`")
    need("matplotlib", "plot", "a report")

    from rich.console import Console
    from rich.progress import Progress

    from dynts.evaluate.results import read_results
    from dynts.report.build import PAGE_FILE, check_out, group_arms, write_report

    check_folder(out)
    check_out(out)
    arms = [arm for folder in folders for arm in read_results(folder, grader)]
    for arm in arms:
        if not arm.samples:
            print(f"dynts: {arm.method} ({arm.folder}) has no samples yet and is left out", file=sys.stderr)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("arms", total=sum(bool(arm.samples) for arm in arms))
        groups = group_arms(arms, lambda: bar.advance(task))
    write_report(groups, out, samples=samples)
    print(out / PAGE_FILE)
