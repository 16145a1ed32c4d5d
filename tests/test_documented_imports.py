"""What the documentation imports from dynts exists, and so does what it imported before modules moved."""

import importlib
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
DOCUMENTED = re.compile(r"^\s*from (dynts[\w.]*) import ([\w, ]+)", re.MULTILINE)
BEFORE = {
    "dynts.tiny": "WEIGHTS, load_tiny_model, load_tiny_predictor",
    "dynts.evaluate.results": "read_results",
    "dynts.evaluate.metrics": "summarize",
    "dynts.evaluate.paired": "compare, holm",
    "dynts.evaluate.voting": "AnswerComparison",
    "dynts.evaluate.replay": "replay, with_full_cache",
    "dynts.grading.grader": "Grader",
    "dynts.grading.compare": "is_correct",
    "dynts.config": "Settings, load_settings, save_settings",
    "dynts.training.tokens": "tokenize_trace",
    "dynts.training.traces": "read_traces",
    "dynts.cache.lengths": "attended_tokens",
}


def documented() -> list[tuple[str, str]]:
    """Modules and the names imported from them, in the pages of this checkout."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [found for page in pages for found in DOCUMENTED.findall(page.read_text(encoding="utf-8"))]


def test_pages_import_something() -> None:
    assert {module for module, _ in documented()} >= {"dynts.config", "dynts.evaluate.results", "dynts.grading.grader"}


@pytest.mark.parametrize(("module", "names"), sorted({*documented(), *BEFORE.items()}))
def test_documented_imports_work(module: str, names: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in names.replace(" ", "").split(",") if not hasattr(found, name)]
    assert not missing, f"{module} has no {', '.join(missing)}"
