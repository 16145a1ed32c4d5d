"""The files that a release needs agree with each other, and the workflows name what exists."""

import re
from pathlib import Path

import pytest
import yaml

from dynts import __version__
from recipes.release import release_notes

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose changelog is dated."""
    for name in ("src/dynts/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        path.write_text(re.sub(rf"^## {re.escape(__version__)} .*", f"## {__version__} (2026-12-01)", text, flags=re.M))
    return tmp_path


def test_notes_are_the_section_of_the_version(checkout: Path) -> None:
    path = checkout / "CHANGELOG.md"
    path.write_text(
        f"# Changelog\n\n## 9.0.0 (2027-01-01)\n\n- new\n\n## {__version__} (2026-12-01)\n\n- this\n\n## 0.0.1\n"
    )
    assert release_notes(f"v{__version__}", checkout) == "- this\n"


def test_this_checkout_can_be_released_once_its_section_is_dated(checkout: Path) -> None:
    assert "### " in release_notes(f"v{__version__}", checkout)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("src/dynts/__init__.py", __version__, "9.9.9", "__init__.py has version 9.9.9"),
        ("CITATION.cff", f"version: {__version__}", "version: 9.9.9", "CITATION.cff has version 9.9.9"),
        ("CHANGELOG.md", f"## {__version__} (2026-12-01)", "## 9.9.9 (2026-12-01)", "CHANGELOG.md has no section"),
        ("CHANGELOG.md", "(2026-12-01)", "(unreleased)", "CHANGELOG.md has no section"),
        ("CHANGELOG.md", "(2026-12-01)", "(20261201)", "CHANGELOG.md has no section"),
        ("CHANGELOG.md", "(2026-12-01)", "(2026-12-41)", "(2026-12-41)': date it"),
        (
            "CHANGELOG.md",
            "(2026-12-01)\n",
            "(2026-12-01)\n\n## 0\n",
            f"the section of {__version__} in CHANGELOG.md is empty",
        ),
    ],
)
def test_a_file_of_another_version_is_named(checkout: Path, name: str, old: str, new: str, said: str) -> None:
    path = checkout / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(said)):
        release_notes(f"v{__version__}", checkout)


def test_a_tag_is_spelt_as_the_workflow_expects(checkout: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"tag {__version__}: tags of releases begin with v")):
        release_notes(__version__, checkout)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_and_forms_can_be_read_and_name_what_exists(path: Path) -> None:
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if path.parent.name == "workflows":
        steps = [step for job in read["jobs"].values() for step in job["steps"]]
        commands = "\n".join(step.get("run", "") for step in steps)
        for target in re.findall(r"^make (\S+)", commands, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for script in re.findall(r"^(?:python )?(\S+/\S+)", commands, re.MULTILINE):
            assert (ROOT / script).is_file(), script
        assert all("@" in step["uses"] for step in steps if "uses" in step)
    elif path.name != "config.yml":
        assert {"name", "description", "body"} <= set(read)
        assert len({part["id"] for part in read["body"]}) == len(read["body"])
