"""Pages in Markdown whose prose keeps within 120 columns, whatever was put into it."""

import re
import textwrap
from itertools import groupby

WIDTH = 120
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_AS_IT_IS = ("|", "#", "![", "<", "    ")
"""How a block begins whose lines are not prose: tables, headings, pictures, HTML, code."""


def wrap_prose(page: str) -> str:
    """Return a Markdown page with the paragraphs and list items filled anew; tables and code stay.

    Args:
        page: blocks with a blank line between them.
    """
    parts, end = [], 0
    for fence in _FENCE.finditer(page):
        parts += [_wrapped(page[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _wrapped(page[end:])])


def _wrapped(text: str) -> str:
    blocks = re.split(r"(\n\n+)", text)
    return "".join(_block(block) if block.strip() else block for block in blocks)


def _block(block: str) -> str:
    before = block[: len(block) - len(block.lstrip("\n"))]
    after = block[len(block.rstrip("\n")) :]
    lines = block.strip("\n").split("\n")
    if lines[0].startswith(_AS_IT_IS):
        return block
    starts = [bool(_ITEM.match(line)) for line in lines]
    numbers = [sum(starts[: place + 1]) for place in range(len(lines))]
    filled = [
        _fill([line for line, _ in item]) for _, item in groupby(zip(lines, numbers, strict=True), lambda each: each[1])
    ]
    return before + "\n".join(filled) + after


def _fill(lines: list[str]) -> str:
    item = _ITEM.match(lines[0])
    return textwrap.fill(
        " ".join(line.strip() for line in lines),
        WIDTH,
        subsequent_indent=" " * len(item[0]) if item else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
