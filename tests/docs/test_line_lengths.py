"""Lines of Markdown keep within 120 characters, rows of tables and words that are longer aside."""

from pathlib import Path

import pytest

from dynts.cli.reference import reference
from dynts.report.leaderboard import leaderboard_page, read_leaderboard
from dynts.report.prose import WIDTH, wrap_prose

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for folder in ("", "docs", "benchmarks", "findings", "examples")
    for path in sorted((ROOT / folder).glob("**/*.md" if folder else "*.md"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    long = [
        f"{page.name}:{number}: {line}"
        for number, line in enumerate(lines, 1)
        if len(line) > WIDTH and not line.startswith("|") and " " in line.strip()
    ]
    assert not long


def test_made_pages_are_as_they_are_made() -> None:
    assert (ROOT / "docs/reference/options.md").read_text(encoding="utf-8") == reference()
    standings = read_leaderboard(ROOT / "docs/results/leaderboard.csv")
    assert (ROOT / "docs/results/leaderboard.md").read_text(encoding="utf-8") == leaderboard_page(standings)
    for name in ("embedded_eval/report.md", "qwen_coder/report.md", "collect_to_predictor.md", "lookback.md"):
        page = (ROOT / "docs/results" / name).read_text(encoding="utf-8")
        assert wrap_prose(page) == page, name


def test_prose_is_filled_and_the_rest_is_left() -> None:
    words = "word " * 30
    kept = f"# {words}\n\n| {words} |\n\n```text\n{words}\n\n{words}\n```\n\n![{words}](picture.png)\n"
    assert wrap_prose(kept) == kept
    found = wrap_prose(f"- {words}\n- short\n\n{words}\nand more\n")
    items, paragraph = found.split("\n\n")
    assert [line[:6] for line in items.split("\n")] == ["- word", "  word", "- shor"]
    assert paragraph.split() == [*words.split(), "and", "more"]
    assert max(map(len, found.split("\n"))) <= WIDTH
