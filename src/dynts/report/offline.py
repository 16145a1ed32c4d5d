"""A page in Markdown, and the same as one HTML file that loads nothing."""

import base64
import html
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from dynts.report.prose import wrap_prose
from dynts.store.files import write_text_whole
from dynts.view.style import colours, policy_hash

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(path: Path, markdown: str, figures: "Mapping[str, Figure]") -> Path:
    """Write a page in Markdown with its figures as PNG and SVG, and beside it the same as one HTML file.

    Args:
        path: of the Markdown; the HTML file has the same name and ends with .html.
        markdown: the page.
        figures: by the address that the page gives them, a PNG file's, relative to the page.

    Returns:
        The HTML file.
    """
    markdown = wrap_prose(markdown)
    drawn = {}
    if figures:
        from dynts.report.figures import draw_svg, save_figure

        for address, figure in figures.items():
            picture = path.parent / address
            drawn[address] = draw_svg(figure, picture.with_suffix(".svg").name)
            save_figure(figure, picture)
            write_text_whole(picture.with_suffix(".svg"), drawn[address])
    write_text_whole(path, markdown)
    offline = path.with_suffix(".html")
    write_text_whole(offline, html_page(markdown, drawn))
    return offline


def html_page(markdown: str, figures: Mapping[str, str]) -> str:
    """Return a page in Markdown as one HTML file that loads nothing.

    HTML in the Markdown is shown as it is written. The page's content security policy allows its style sheet and
    the pictures in it, and nothing else: no script, no network.

    Args:
        markdown: the page.
        figures: SVG by the address that the page gives it; any other image is shown as its title.
    """
    parser = _parser()
    tokens = parser.parse(markdown)
    titles: dict[str, list[tuple[str, str]]] = {"h1": [], "h2": []}
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            written = _text(tokens[place + 1])
            anchor = f"section-{place}"
            token.attrSet("id", anchor)
            titles.setdefault(token.tag, []).append((anchor, written))
        elif token.type in ("th_open", "td_open") and "style" in token.attrs:
            token.attrs = {"class": "number"}  # the policy forbids styles of single elements
    static = files("dynts.report") / "static"
    style = colours() + (static / "page.css").read_text(encoding="utf-8")
    return Template((static / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(": ".join(["dynts", *(title for _, title in titles["h1"][:1])])),
        style=style,
        style_hash=policy_hash(style),
        contents=_contents(titles["h2"]),
        body=parser.renderer.render(tokens, parser.options, {"figures": figures}),
    )


def _contents(sections: Sequence[tuple[str, str]]) -> str:
    if len(sections) < 2:
        return ""
    links = "\n".join(f'<li><a href="#{anchor}">{html.escape(title)}</a></li>' for anchor, title in sections)
    return f'<nav aria-label="Sections">\n<ul>\n{links}\n</ul>\n</nav>\n'


def _text(token: Token) -> str:
    """What is written in a heading or beside an image, without its marks."""
    return "".join(child.content or _text(child) for child in token.children or [])


@cache
def _parser() -> MarkdownIt:
    """CommonMark with tables, without HTML of its own."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _image)
    # something to scroll in, which the keyboard reaches too
    parser.add_render_rule("table_open", lambda *_: '<div class="table" role="region" tabindex="0">\n<table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table>\n</div>\n")
    return parser


def _image(renderer: Any, tokens: Sequence[Token], place: int, options: Any, env: Any) -> str:
    token = tokens[place]
    title = html.escape(_text(token))
    drawn = env["figures"].get(token.attrs["src"])
    if drawn is None:
        return title
    return f'<img alt="{title}" src="data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}">'
