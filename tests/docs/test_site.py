"""The site builds without a warning, and its pages ask no other machine for anything."""

import json
import re
import time
from pathlib import Path

import pytest

from browser import chromium, set_screen

mkdocs = pytest.importorskip("mkdocs", reason="the docs extra is not installed")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    # raises on a warning: a link or an anchor that leads nowhere, a page that no menu has, a docstring of other names
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    assert not [page for page in pages if LOADED.search(page.read_text(encoding="utf-8"))]


def test_links_of_the_repository_lead_to_pages_of_the_site(site: Path) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="guides/training.html' in front
    assert 'href="CONTRIBUTING.html"' in front
    assert "docs/" not in re.sub(r"<code.*?</code>", "", front)
    assert (site / "benchmarks/index.html").is_file()


def test_the_reference_shows_defaults_of_options(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "reference/api/config.html").read_text(encoding="utf-8"))
    assert re.search(r"budget\s*\(\s*int\s*,\s*default:\s*5000\s*\)", page)


def test_search_works_on_a_page_from_the_disk(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path) as driver:
        set_screen(driver, 1400, 900)
        driver.get((site / "guides/training.html").as_uri())
        driver.find_element("css selector", "input.md-search__input").send_keys("retention ratio")
        until = time.monotonic() + 60
        while not (found := driver.find_elements("css selector", ".md-search-result__item a")):
            assert time.monotonic() < until, "nothing is found"
            time.sleep(0.1)
        assert all(link.get_attribute("href").startswith(site.as_uri()) for link in found)
        events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert sum(url.startswith(site.as_uri()) for url in asked) > 5
        assert not [url for url in asked if url.startswith("http")]
