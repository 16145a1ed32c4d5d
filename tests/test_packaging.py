"""The distribution's name: what people are told to install is this package, not the other one that PyPI calls dynts."""

import re
import tomllib
from pathlib import Path

import pytest

from dynts.extras import DISTRIBUTION, pip_install

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert set(PROJECT["scripts"]) == {"dynts"}


def test_every_extra_that_is_named_exists() -> None:
    """In the code, and in every command of the documents; nobody is sent to the package that PyPI calls dynts."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    named = set()
    for path in texts:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install ['\"]?dynts(?![-\w])", text), path
        for extras in re.findall(rf"(?:{DISTRIBUTION}|['\"]\.)\[([a-z,]+)\]", text):
            named |= set(extras.split(","))
        named |= set(re.findall(r"\bneed\([^,()]+, \"(\w+)\",", text))
    assert {"collect", "plot", "ray", "serve", "vllm"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_command_to_install_names_the_distribution_and_the_clone() -> None:
    assert pip_install("plot") == "pip install 'dynts-kv[plot]' (in a clone of dynts: pip install '.[plot]')"


def test_the_package_needs_nothing_that_stays_in_the_repository() -> None:
    for path in ROOT.glob("src/**/*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not {"recipes", "benchmarks", "examples", "tests"} & set(imported), path
