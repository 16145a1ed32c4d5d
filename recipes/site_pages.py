"""Hooks of the site (mkdocs.yml): pages keep the links that work in the repository, and what they link to is there.

README.md is the front page as it stands. A file outside docs/ that a page links to comes along at its own path:
Markdown as a page, a picture as it is, a notebook as a page with its outputs, any other text as a page that shows it.
"""

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
FRONT = "README.md"

LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href)=\")(?P<target>[^)\s\"]+)(?=[)\s\"])")
FENCE = re.compile(r"^ *(```+)[^`\n]*\n.*?^ *\1 *$", re.MULTILINE | re.DOTALL)
PICTURES = {".png", ".svg", ".gif", ".webp"}
LANGUAGES = {".py": "python", ".sh": "bash", ".json": "json", ".toml": "toml", ".cff": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the front page, and every file outside docs/ that a page links to, directly or by another such page."""
    waiting = [FRONT, *(DOCS + file.src_uri for file in files.documentation_pages())]
    seen = set(waiting)
    files.append(_added(FRONT, config))
    while waiting:
        page = waiting.pop()
        if not page.endswith(".md"):
            continue
        for path in sorted(_linked(page) - seen):
            seen.add(path)
            if not path.startswith(DOCS) and (ROOT / path).is_file():
                files.append(_added(path, config))
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links from its place on the site instead of its place in the repository."""
    uri = page.file.src_uri
    here = posixpath.dirname(uri)
    repository = _repository_path(uri)

    def rewrite(link: re.Match[str]) -> str:
        path, anchor = _resolve(link["target"], repository)
        if path is None:
            return link[0]
        return link["before"] + posixpath.relpath(_site_uri(path), here or ".") + anchor

    return _outside_fences(markdown, lambda text: LINK.sub(rewrite, text))


def _added(path: str, config: MkDocsConfig) -> File:
    source = ROOT / path
    if source.suffix == ".md" or source.suffix in PICTURES:
        return File.generated(config, _site_uri(path), abs_src_path=str(source))
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        return File.generated(config, _site_uri(path), content=_notebook(json.loads(text)))
    return File.generated(
        config, _site_uri(path), content=f"# {path}\n\n`````{LANGUAGES.get(source.suffix, 'text')}\n{text}`````\n"
    )


def _notebook(read: dict[str, Any]) -> str:
    """A notebook as a page: its text, its code, and what that printed and drew."""
    parts = []
    for cell in read["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            shown = output.get("data", {})
            printed = "".join(output.get("text", shown.get("text/plain", "")))
            picture = "".join(shown.get("image/png", "")).strip()
            parts.append(f"![](data:image/png;base64,{picture})" if picture else f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _linked(page: str) -> set[str]:
    """The files of the repository that a page of it links to, as paths from the root."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return {path for link in LINK.finditer(text) if (path := _resolve(link["target"], page)[0])}


def _resolve(target: str, page: str) -> tuple[str | None, str]:
    """A link's file as a path from the root, and its anchor; no path for addresses and anchors of the page itself."""
    path, hash_sign, anchor = target.partition("#")
    if not path or ":" in path:
        return None, ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)), hash_sign + anchor


def _site_uri(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return path if Path(path).suffix in {".md", *PICTURES} else path + ".md"


def _repository_path(uri: str) -> str:
    """Where a page of the site is in the repository."""
    return DOCS + uri if (ROOT / DOCS / uri).exists() else uri


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    changed, end = [], 0
    for fence in FENCE.finditer(markdown):
        changed += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*changed, change(markdown[end:])])
