r"""Find the answer that a model put into \boxed{...}."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_SIGN = re.compile(r"[-+]\s*")
_BARE = re.compile(
    r"\d[\d.,/]*|[A-Za-z](?![A-Za-z])|(?P<script>[_^])"
    r"|\\(?P<command>(?!begin|left|q?quad)[A-Za-z]+)(?:\s*\[[^\[\]]*\])?"
)
_ARGUMENT = re.compile(r"\s*(?:(?P<group>(?=\{))|[^\W_]|\\[A-Za-z]+)")
_TAKES_TWO = re.compile(r"[dtc]?frac|[dt]?binom|textcolor")
_TAKES_ONE = re.compile(r"sqrt|text|text(?:bf|it|rm)|math(?:rm|bf|it)|mbox|overline|bar|dot|vec")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_DELIMITERS = re.compile(r"\$|\\[()\[\]]|\\q?quad|\\[,;: ]|\*|\s")
_JOINED = re.compile(r"(?:,|;|,?and|,?or|,?\\text\{(?:and|or)\})(?:[A-Za-z]=)?")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last box of a text, or of the last boxes where they are parts of one answer.

    Both `\boxed` and `\fbox` count; without braces `\boxed 5` and `\boxed 3\frac12` are read as far as numbers, letters
    and commands go. Boxes with nothing but a comma, semicolon, "and" or "or" between them (and "x =" before the next)
    are one answer: "\boxed{3} and \boxed{5}" gives "3, 5". Of all other boxes the last counts. Empty boxes are skipped:
    they are usually the instruction, repeated.

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
            end = _bare_end(text, position)
            content = text[position:end].rstrip(".,/ ")
            position = end
        if content:
            boxes.append((box.start(), position, last_boxed(content) or content))
    return boxes


def _bare_end(text: str, start: int) -> int:
    """Return where an answer without braces ends: a sign, then numbers, letters, and commands with their arguments."""
    sign = _SIGN.match(text, start)
    position = first = sign.end() if sign else start
    while bare := _BARE.match(text, position):
        position = bare.end()
        command = bare["command"] or ""
        takes = 2 if _TAKES_TWO.fullmatch(command) else bool(bare["script"] or _TAKES_ONE.fullmatch(command))
        for _ in range(takes):
            argument = _ARGUMENT.match(text, position)
            if argument is None:
                return start
            position = argument.end()
            if argument["group"] is not None:
                closing = closing_brace(text, position)
                if closing is None:  # cut off
                    return start
                position = closing + 1
    return position if position > first else start


def closing_brace(text: str, opening: int) -> int | None:
    """Find where a group is closed; an escaped brace is text.

    Args:
        text: the text.
        opening: place of its opening brace.
    """
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
