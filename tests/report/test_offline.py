"""Pages as one HTML file: what they hold, what they could load, what text of others can do to them."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import chromium, set_screen
from dynts.config import CompressionConfig
from dynts.report.build import group_arms, write_report
from dynts.report.importance import _code
from dynts.report.offline import html_page
from dynts.report.tables import markdown_table, plain
from html_elements import Elements
from made_arms import make_arm

HOSTILE = (
    "</style><script>alert(1)</script>",
    "<img src=http://example.com/a.png onerror=alert(1)>",
    "![x](http://example.com/b.png)",
    "[x](javascript:alert(1))",
    "[x](http://example.com) <http://example.com>",
    "a|b | c",
    "`code` **bold** *it* _it_ &lt; &amp; \\ ~~x~~",
    "two\nlines\n\n# heading",
    "``` fence",
    "snake_case_name.jsonl",
)


def shown(elements: Elements) -> list[str]:
    """The text of each cell, whatever elements are within."""
    cells: list[str] = []
    inside = False
    for tag, _, data in elements.found:
        if tag in ("td", "after td"):
            inside = tag == "td"
            cells += [""] if inside else []
        if inside:
            cells[-1] += "".join(data)
    return cells


def check_loads_nothing(text: str) -> Elements:
    """No script, no network: neither elements that load something, nor a policy that would let them."""
    elements = Elements(text)
    tags = {tag for tag, _, _ in elements.found}
    assert not {"script", "link", "iframe", "object", "base", "form"} & tags
    for tag, found, _ in elements.found:
        assert not [name for name in found if name in ("srcset", "style") or name.startswith("on")], found
        if "src" in found:
            assert tag == "img"
            assert str(found["src"]).startswith("data:image/svg+xml;base64,")
        if "href" in found:
            assert tag == "a"
    (style,) = elements.texts("style")
    assert "url(" not in style
    assert "@import" not in style
    policy = next(found["content"] for _, found, _ in elements.found if "http-equiv" in found)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'"
    return elements


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_text(text: str) -> None:
    table = markdown_table(("name", "figure"), [(plain(text), "1.5")])
    page = f"# About {plain(text)}\n\nmodel: {plain(text)}\n\n{table}"
    elements = check_loads_nothing(html_page(page, {}))
    line = " ".join(text.split())
    assert shown(elements) == [line, "1.5"]
    assert elements.texts("title") == [f"dynts: About {line}"]
    assert elements.texts("p") == [f"model: {line}"]
    assert not [found for tag, found, _ in elements.found if tag == "a"]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_others_loads_nothing(text: str) -> None:
    elements = check_loads_nothing(html_page(text, {"a.png": "<svg/>"}))
    assert not elements.texts("img")
    assert not [found for tag, found, _ in elements.found if "javascript" in str(found.get("href", ""))]


@pytest.mark.parametrize("token", ["`", "``", "a```b", "|", "<b>", "\\", " "])
def test_tokens_are_spelled_as_they_are(token: str) -> None:
    table = markdown_table(("token", "share"), [(_code(token), "1%")])
    visible = {"\\": "\\\\", " ": "␣"}.get(token, token)
    assert shown(Elements(html_page(table, {}))) == [visible, "1%"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups, one of a model with a hostile name."""
    wide, narrow = CompressionConfig(400, 100, 0.4), CompressionConfig(200, 50, 0.4)
    arms = [
        make_arm(method, config, accuracy, benchmark=benchmark, model=f"no-such/{HOSTILE[2]}")
        for benchmark in ("aime24", "math500")
        for method, config, accuracy in (("full", None, 0.9), ("rkv, native", wide, 0.5), ("rkv, native", narrow, 0.3))
    ]
    return write_report(group_arms(arms), tmp_path_factory.mktemp("report"))


def test_a_report_holds_tables_and_figures(report: Path) -> None:
    markdown = report.with_suffix(".md").read_text(encoding="utf-8")
    elements = check_loads_nothing(report.read_text(encoding="utf-8"))
    rows = [line for line in markdown.splitlines() if re.match(r"\| (full|rkv)", line)]
    assert shown(elements) == [cell.strip() for row in rows for cell in row[1:-1].split("|")]
    images = [found for tag, found, _ in elements.found if tag == "img"]
    addresses = re.findall(r"!\[.*\]\((figures/.*)\.png\)", markdown)
    assert len(images) == len(addresses) == 6
    for image, address in zip(images, addresses, strict=True):
        drawn = base64.b64decode(str(image["src"]).partition(",")[2])
        assert drawn == (report.parent / f"{address}.svg").read_bytes()
        assert ET.fromstring(drawn).tag.endswith("svg")
        assert image["alt"]
    links = [found["href"] for tag, found, _ in elements.found if tag == "a"]
    for link in links:
        target = str(link)
        if target.startswith("#"):
            assert f'id="{target[1:]}"' in report.read_text(encoding="utf-8")
        else:
            assert (report.parent / target).exists()
    assert HOSTILE[2] in "".join("".join(data) for _, _, data in elements.found)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_it(driver: Any, report: Path, width: int, scheme: str) -> None:
    set_screen(driver, width, 900, scheme)
    driver.get(report.as_uri())
    assert driver.get_log("browser") == []
    sizes = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    page, window = driver.execute_script(sizes)
    assert page == window <= width
    drawn = driver.execute_script(
        "return [...document.images].map((image) => [image.complete, image.naturalWidth, image.width])"
    )
    assert len(drawn) == 6
    assert all(complete and natural > 300 and 300 < wide <= width for complete, natural, wide in drawn)
    background, ink = driver.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink)]
    assert (lightness[0] > lightness[1]) == (scheme == "light")
