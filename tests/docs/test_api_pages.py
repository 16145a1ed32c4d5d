"""The API reference has a place for everything that users may import."""

import ast
import re
from pathlib import Path

import pytest

import dynts
from dynts.methods import METHODS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PAGES = sorted((ROOT / "docs/reference/api").glob("*.md"))
DIRECTIVE = re.compile(r"^::: (\S+)\n(?:    options:\n      show_submodules: (false))?", re.MULTILINE)

INTERNAL = {
    "dynts.__main__": "the command",
    "dynts.cache": "the engine; what methods see of it is in the reference",
    "dynts.chat": "texts of models; markers and options are in the reference",
    "dynts.cli": "commands; docs/reference/options.md has them",
    "dynts.decode": "runs inside the context that is in the reference",
    "dynts.doctor": "what `dynts doctor` shows",
    "dynts.engines": "engines and plugins, which are started by name; what they have in common is in the reference",
    "dynts.extras": "names what is to be installed",
    "dynts.grading": "how answers are compared, told by docs/reference/grading.md",
    "dynts.models": "how models are run",
    "dynts.options": "how a field becomes an option, told by CONTRIBUTING.md",
    "dynts.store": "files",
}
"""Modules, and packages with all that is in them, that may be missing in the reference, and why. What is not here is
for users."""


def modules() -> set[str]:
    """The modules of dynts that define a public class or function."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if any(isinstance(node, kinds) and not node.name.startswith("_") for node in body):
            found.add(".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"))
    return found


def shown() -> tuple[set[str], set[str]]:
    """The modules that the pages show, and the packages that they show with all modules in them."""
    directives = [found for page in PAGES for found in DIRECTIVE.findall(page.read_text(encoding="utf-8"))]
    alone = {name for name, without in directives if without}
    return alone, {name for name, without in directives if not without}


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_every_module_for_users_is_in_the_reference() -> None:
    alone, whole = shown()
    missing = {name for name in modules() if name not in alone and not within(name, whole | set(INTERNAL))}
    assert not missing, f"not in docs/reference/api/*.md: {', '.join(sorted(missing))}"


def test_the_reference_shows_modules_that_exist() -> None:
    for name in set.union(*shown()):
        path = SOURCE / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_a_module_has_one_place() -> None:
    names = [name for page in PAGES for name, _ in DIRECTIVE.findall(page.read_text(encoding="utf-8"))]
    assert len(names) == len(set(names))
    _, whole = shown()
    assert not {name for name in names if within(name, whole - {name})}


def test_every_method_is_in_the_reference() -> None:
    _, whole = shown()
    classes = [*METHODS.values(), dynts.methods.TriAttention, dynts.methods.Method]
    assert all(within(kind.__module__, whole) for kind in classes)


def test_the_names_of_dynts_itself_are_listed() -> None:
    page = (ROOT / "docs/reference/api/compress.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\[`(\w+)`\]\(\S+\) ?(?=[,|])", page))
    assert listed == set(dynts.__all__) - {"__version__"}


def test_what_pages_import_is_in_the_reference() -> None:
    alone, whole = shown()
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    imported = {
        name
        for page in pages
        for name in re.findall(r"^\s*from (dynts[\w.]*) import", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {name for name in imported if name not in alone and not within(name, whole)} <= {"dynts"}
