"""The page of licences names all that ships, and all that an installation asks for by name."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/licences.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

ROWS = dict(re.findall(r"^\| `(.*?)` \| (.*) \|$", PAGE.split("## What an installation brings")[1], re.MULTILINE))
FAMILIES = ("Apache", "BSD", "MIT", "ISC")
"""Parts of licences' names, as the page and metadata spell them."""


def names_in(row: str) -> list[str]:
    """Return the packages of a row, their licences left out."""
    return [word for part in re.sub(r"\(.*?\)", "", row).split(",") if (word := part.strip())]


def required(extra: str | None) -> list[str]:
    chosen = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return sorted(re.match(r"[-\w]+", requirement)[0] for requirement in chosen)  # type: ignore[index]


def test_every_requirement_is_named() -> None:
    extras = set(PROJECT["optional-dependencies"]) - {"dev"}
    assert ROWS.keys() == {"pip install dynts-kv"} | {f"[{extra}]" for extra in extras}
    assert sorted(names_in(ROWS["pip install dynts-kv"])) == required(None)
    for extra in extras:
        assert sorted(names_in(ROWS[f"[{extra}]"])) == required(extra)


@pytest.mark.parametrize("row", ROWS)
def test_licences_are_those_of_the_metadata(row: str) -> None:
    """Where a package is installed here and its metadata say one of the families."""
    for listed, licence in re.findall(r"([^()]+) \(([^()]+)\)", ROWS[row]):
        for name in filter(None, (part.strip() for part in listed.split(","))):
            try:
                stated = metadata(name)
            except PackageNotFoundError:
                continue
            classifiers = [text for text in stated.get_all("Classifier") or [] if text.startswith("License")]
            text = stated.get("License-Expression") or stated.get("License") or ""
            told = " ".join([*classifiers, text if "\n" not in text else ""])
            families = [family for family in FAMILIES if family in told]
            assert not families or any(family in licence for family in families), (name, licence, told)


def test_the_wheel_holds_no_other_files_than_the_page_says() -> None:
    """The wheel is the folder src/dynts."""
    folders = ("tiny/weights", "view/static", "report/static")
    assert all(f"dynts/{folder}" in PAGE for folder in folders)
    for path in (ROOT / "src/dynts").rglob("*"):
        name = path.relative_to(ROOT / "src/dynts").as_posix()
        if path.is_file() and "__pycache__" not in path.parts:
            assert name.startswith(folders) or path.suffix == ".py" or name == "py.typed", name


def test_pages_embed_no_library() -> None:
    for folder in ("view/static", "report/static"):
        for path in (ROOT / "src/dynts" / folder).iterdir():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?://(?!www\.w3\.org)|copyright|@license", text, re.IGNORECASE), path
