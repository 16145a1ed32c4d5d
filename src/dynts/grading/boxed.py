r"""Find the answer that a model put into \boxed{...}."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_UNBRACED = re.compile(r"[-+]?\d[\d.,/]*|[A-Za-z](?![A-Za-z])")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_DELIMITERS = re.compile(r"\$|\\[()\[\]]|\\q?quad|\\[,;: ]|\*|\s")
_JOINED = re.compile(r"(?:,|;|,?and|,?or|,?\\text\{(?:and|or)\})(?:[A-Za-z]=)?")


def last_boxed(text: str) -> str | None:
    r"""The content of the last box of a text, or of the last boxes where they are parts of one answer.

    Both `\boxed` and `\fbox` count; `\boxed 5` without braces is read up to the end of its number or letter. Boxes
    with nothing but a comma, semicolon, "and" or "or" between them (and "x =" before the next) are one answer:
    "\boxed{3} and \boxed{5}" gives "3, 5". Of all other boxes the last counts. Empty boxes are skipped: they are
    usually the instruction, repeated.

    Returns:
        The content without the braces; None if there is no box, or if the last one is never closed, for its content
        may have been cut off.
    """
    parts: list[str] = []
    next_start = 0
    for start, end, content in reversed(_boxes(text)):
        if content is None:
            break
        if parts and not _JOINED.fullmatch(_DELIMITERS.sub("", text[end:next_start])):
            break
        next_start = start
        if content not in parts:
            parts.insert(0, content)
    return ", ".join(parts) or None


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """Start, end and content of the boxes that are not inside another; the content of an unclosed one is None."""
    boxes: list[tuple[int, int, str | None]] = []
    position = 0
    while box := _BOX.search(text, position):
        position = box.end()
        if text.startswith("{", position):
            end = closing_brace(text, position)
            if end is None:
                boxes.append((box.start(), len(text), None))
                break
            content = text[position + 1 : end].strip()
            position = end + 1
        else:
            bare = _UNBRACED.match(text, position)
            content = bare.group().rstrip(".,/") if bare else ""
            position = bare.end() if bare else position
        if content:
            boxes.append((box.start(), position, last_boxed(content) or content))
    return boxes


def closing_brace(text: str, opening: int) -> int | None:
    """Where the group that opens at `opening` is closed; an escaped brace is text."""
    depth, position = 0, opening
    while position < len(text):
        if escaped := _ESCAPED.match(text, position):
            position = escaped.end()
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
        position += 1
    return None
