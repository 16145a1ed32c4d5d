"""Imports point down: the levels below are the architecture (docs/explanation/architecture.md)."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dynts

pytestmark = pytest.mark.quick

ROOT = Path(dynts.__file__).parent

LEVELS = [
    {"errors"},
    {"extras"},
    {"store"},
    {"options"},
    {"chat"},
    {"config"},
    {"models"},
    {"grading", "predictor"},
    {"cache"},
    {"methods"},
    {"decode"},
    {"traces"},
    {"engines", "tiny"},
    {"training", "bench", "serve"},
    {"collect"},
    {"evaluate"},
    {"planning", "analyze", "view", "demo", "doctor"},
    {"report"},
    {"cli"},
    {"harness"},
]
"""From the bottom: a package, or a module beside the packages, imports from levels below its own, and from itself."""

LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def arrows() -> Iterator[tuple[str, str]]:
    """The modules of dynts that each file imports, wherever in the file, those for annotations included."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "dynts":
                yield from ((place, name.name) for name in node.names if name.name in LEVEL)
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dynts."):
                yield place, node.module.removeprefix("dynts.")
            elif isinstance(node, ast.Import):
                inside = (name.name for name in node.names if name.name.startswith("dynts."))
                yield from ((place, name.removeprefix("dynts.")) for name in inside)


def room(place: str) -> str:
    """The package of a file or module, or its name where it lies beside the packages."""
    return place.removesuffix(".py").replace("/", ".").split(".")[0]


def test_imports_point_down() -> None:
    up = {
        f"{place} -> {module}"
        for place, module in arrows()
        if room(place) not in ("__init__", "__main__")
        and room(place) != room(module)
        and LEVEL[room(module)] >= LEVEL[room(place)]
    }
    assert not up, "these imports point up, or sideways: " + ", ".join(sorted(up))


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_file_names_say_what_is_in_them() -> None:
    names = Counter(path.name for path in ROOT.rglob("*.py"))
    assert not {"row.py", "rows.py", "run.py", "utils.py", "helpers.py"} & names.keys()
    assert names["report.py"] <= 1  # the command


def test_the_page_on_architecture_is_in_step() -> None:
    page = (ROOT.parents[1] / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(re.findall(r"\*\*(\w+)\*\*", page))
    named = [path for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", page) if "NAME" not in path]
    assert named
    places = [ROOT / path if (ROOT / path).exists() else ROOT.parents[1] / path for path in named]
    assert not [str(path) for path in places if not path.exists()]


def test_a_file_says_what_it_holds() -> None:
    for path in ROOT.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_public_functions_say_what_they_do_and_take() -> None:
    """A summary starts with a verb; with two or more arguments each is named, here or where the docstring refers to."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in [function for owner in (tree, *classes) for function in owner.body]:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            text = ast.get_docstring(node) or ""
            if [part.arg for part in node.args.args][:1] == ["given"]:  # a command, whose help this is
                continue
            taken = {part.arg for part in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
            named = all(re.search(rf"\b{name}: ", text) for name in taken) or re.search(r"rguments|[Ss]ee `", text)
            noun = re.match(r"(The|An?|Of|For|As|What|How|Which|Whether|All|One|bool)\b", text)
            if not text or noun or (len(taken) > 1 and not named):
                found.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not found
