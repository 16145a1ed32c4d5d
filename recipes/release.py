"""Checks that a tag is the release that this checkout holds, and prints its notes.

    python recipes/release.py v0.2.0

The tag must be that of `dynts.__version__` and of CITATION.cff, and CHANGELOG.md must have a dated section of it, which
is printed.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the changelog's section of a release.

    Args:
        tag: as in git, such as "v0.2.0".
        root: of the checkout.

    Raises:
        ValueError: names the file that speaks of another version, or has none of this one.
    """
    version = tag.removeprefix("v")
    stated = {
        "src/dynts/__init__.py": r"^__version__ = \"(.*)\"$",
        "CITATION.cff": r"^version: (.*)$",
    }
    for path, pattern in stated.items():
        found = re.search(pattern, (root / path).read_text(encoding="utf-8"), re.MULTILINE)
        if found is None or found[1] != version:
            raise ValueError(
                f"tag {tag}: {path} has version {found and found[1]}: change it, or tag v{found and found[1]}"
            )
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(version)} \(\d{{4}}-\d{{2}}-\d{{2}}\)\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None:
        raise ValueError(f"tag {tag}: CHANGELOG.md has no section '## {version} (YEAR-MONTH-DAY)': date it")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    try:
        print(release_notes(sys.argv[1]), end="")
    except ValueError as error:
        sys.exit(str(error))
