"""Checks that a tag is the release that this checkout holds, and prints its notes.

    python recipes/release.py v0.2.0

The tag must be that of `dynts.__version__` and of CITATION.cff, and CHANGELOG.md must have a dated section of it, which
is printed.
"""

import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of a release.

    Args:
        tag: as in git, such as "v0.2.0".
        root: of the checkout.

    Raises:
        ValueError: the tag has no v, or a file speaks of another version, or the section is missing, without a date or
            empty; the file is named.
    """
    if not tag.startswith("v"):
        raise ValueError(f"tag {tag}: tags of releases begin with v: call it v{tag}")
    version = tag.removeprefix("v")
    stated = {
        "src/dynts/__init__.py": r"^__version__ = \"(.*)\"$",
        "CITATION.cff": r"^version: \"?(.*?)\"?$",
    }
    for path, pattern in stated.items():
        found = re.search(pattern, (root / path).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            raise ValueError(
                f"tag {tag}: {path} has version {found and found[1]}: change it, or tag v{found and found[1]}"
            )
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(version)} \((\d{{4}}-\d{{2}}-\d{{2}})\)\n(.*?)(?=^## |\Z)",
        changelog,
        re.MULTILINE | re.DOTALL,
    )
    if section is None:
        raise ValueError(f"tag {tag}: CHANGELOG.md has no section '## {version} (YEAR-MONTH-DAY)': date it")
    try:
        date.fromisoformat(section[1])
    except ValueError as error:
        raise ValueError(f"tag {tag}: CHANGELOG.md has '## {version} ({section[1]})': date it, {error}") from error
    if not (notes := section[2].strip()):
        raise ValueError(f"tag {tag}: the section of {version} in CHANGELOG.md is empty: say what is new")
    return f"{notes}\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give one tag, such as v0.2.0")
    try:
        print(release_notes(sys.argv[1]), end="")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
