"""`dynts report`: tables, paired tests and figures of evaluated arms."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynts.cli.checks import check_folder
from dynts.cli.console import load_libraries, say, show, show_page
from dynts.cli.eval import GRADER_HELP
from dynts.options import option


@dataclass(kw_only=True)
class ReportCommand:
    """What `dynts report` is given."""

    folders: tuple[Path, ...] = option(positional=True, metavar="DIR...", help="Written by dynts eval.")
    out: Path = option(metavar="REPORT", help="Folder for page, CSV and figures.")
    grader: Literal["dynts", "math-verify"] = option("dynts", help=GRADER_HELP)
    samples: bool = option(False, switch=True, help="Also write every sample as a row of samples.csv.")
    leaderboard: Path | None = option(
        None, metavar="FILE.csv", help="Add the arms to this leaderboard, and write its page beside it."
    )


def report(given: ReportCommand) -> None:
    """Compare what was evaluated: accuracy, length, memory, time and FLOPs by method, with paired tests and figures.

    Arms with another model, sampling or problems come into groups of their own. Folders may still be filling: arms that
    lack samples are marked.
    """
    from dynts.errors import DyntsError
    from dynts.extras import need

    for folder in given.folders:
        if not folder.is_dir():
            raise DyntsError(f"{folder} is not a folder: give folders written by `dynts eval`")
    need("matplotlib", "plot", "a report")
    load_libraries("dynts.report.build")

    from dynts.evaluate.results import read_results
    from dynts.report.build import check_out, group_arms, write_report
    from dynts.report.leaderboard import read_leaderboard, standings_of, update_leaderboard
    from dynts.store.progress import bar

    check_folder(given.out)
    check_out(given.out)
    if given.leaderboard is not None:
        read_leaderboard(given.leaderboard)  # refused before the work if it is none
        if given.leaderboard.parent.resolve() != given.out.resolve():  # which is made when it is written
            check_folder(given.leaderboard)
    with bar("reading results"):
        arms = [arm for folder in given.folders for arm in read_results(folder, given.grader)]
    for arm in arms:
        if not arm.samples:
            say(f"dynts: {arm.method} ({arm.folder}) has no samples yet and is left out")
    with bar("intervals", sum(bool(arm.samples) for arm in arms)) as shown:
        groups = group_arms(arms, shown.advance)
    standings = standings_of(groups) if given.leaderboard is not None else []
    with bar("paired tests and figures"):
        page = write_report(groups, given.out, samples=given.samples)
    if given.leaderboard is not None:
        update_leaderboard(given.leaderboard, standings)
        show(given.leaderboard.with_suffix(".md"))
    show_page(page)
