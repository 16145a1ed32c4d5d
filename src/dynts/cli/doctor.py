"""`dynts doctor`: whether this machine is fit for dynts, and what it would run."""

from dataclasses import asdict, dataclass
from json import dumps

import typer

from dynts.cli.console import show
from dynts.options import option

MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@dataclass(kw_only=True)
class DoctorCommand:
    """What `dynts doctor` is given."""

    json: bool = option(False, switch=True, help="Print one JSON object and nothing else.")


def doctor(given: DoctorCommand) -> None:
    """Say what this machine has and what dynts would run on it; exit with 1 if something is wrong."""
    from dynts.store.progress import bar

    with bar("looking around, and trying the embedded model"):
        from dynts.doctor.facts import look
        from dynts.doctor.findings import judge

        facts = look()
        findings = judge(facts)
    if given.json:
        show(dumps({"facts": asdict(facts), "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            show(f"{MARKS[finding.level]}  {finding.subject}: {finding.text}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
