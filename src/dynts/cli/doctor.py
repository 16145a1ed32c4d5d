"""`dynts doctor`: whether this machine is fit for dynts, and what it would run."""

from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import typer

from dynts.cli.console import show
from dynts.options import option

if TYPE_CHECKING:
    from dynts.doctor.findings import Finding

_WIDTH = 100


@dataclass(kw_only=True)
class DoctorCommand:
    """What `dynts doctor` is given."""

    model: Path | None = option(None, help="Folder of a model: what it takes here; only its configuration is read.")
    json: bool = option(False, switch=True, help="Print one JSON object and nothing else.")


def doctor(given: DoctorCommand) -> None:
    """Say what this machine has and what dynts would run on it; exit with 1 if something is wrong."""
    from dynts.store.progress import bar

    with bar("looking around, and trying the embedded model"):
        from dynts.doctor.facts import look
        from dynts.doctor.findings import judge

        facts = look(given.model)
        findings = judge(facts)
    if given.json:
        show(dumps({"facts": asdict(facts), "findings": [asdict(finding) for finding in findings]}))
    else:
        show("\n".join(map(as_lines, findings)))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def as_lines(finding: "Finding") -> str:
    """Return a finding as text of a screen's width; its fix stays whole, to be copied."""
    start = f"{finding.level:<8} "
    indent = " " * len(start)
    text = fill(
        f"{finding.subject}: {finding.text}",
        _WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{text}\n{indent}-> {finding.fix}" if finding.fix else text
