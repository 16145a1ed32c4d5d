r"""Rewrite what Math-Verify would misread: numerals, percent signs, binomials, vectors, set-builder notation."""

import re

from dynts.grading.numerals import REWRITINGS, Replacement
from dynts.grading.units import TEXT, WRAPPED

_SPACES = re.compile(r"\\[,;: ]|~|\\q?quad(?![a-z])|\s+")
_REPLACEMENTS: list[Replacement] = [
    (re.compile(r"√\s*\(([^()]*)\)|√\s*(\w+)"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ"), r"^\\circ "),
    (re.compile(r"\\(?:mid|vert)(?![A-Za-z])"), "|"),
    (re.compile(rf"\s*(?:{TEXT}\s*\{{\s*percent\s*\}}|\bpercent\b)"), r"\\%"),
    (re.compile(r"(?<!\\)%"), r"\\%"),
    (re.compile(r"(?<!\\)\$|\\[()\[\]]|\\!\s*"), ""),
    *REWRITINGS,
    (re.compile(r"\\(?:langle|lt)(?![A-Za-z])(.*)\\(?:rangle|gt)(?![A-Za-z])|^<(.*,.*)>$"), r"(\1\2)"),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\binom\s*(\d)\s*(\d)"), r"\\binom{\1}{\2}"),
    # of factors side by side with a binomial Math-Verify reads only one
    (re.compile(r"(?<=[\d})])\s*(?=\\binom)"), r" \\cdot "),
    (re.compile(r"(\\binom\{[^{}]*\}\{[^{}]*\})\s*(?=[\w(])"), r"\1 \\cdot "),
    (re.compile(r"^(?:=|≈|\\approx)\s*|(?<=\d)solution:$"), ""),  # GK23EN has a gold answer "$145$solution:"
    (re.compile(r"^([A-Za-z])\([A-Za-z](?:,\s*[A-Za-z])*\)\s*="), r"\1 ="),
    # a line segment or its length, not a product
    (re.compile(r"^(?:\\overline\s*\{)?([A-Z]{2})\}?\s*="), r"\\overline{\1} ="),
]
_INTEGER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,1000})")
# an entry of three digits right after a comma could be the rest of a number: (1,234)
_TUPLE = re.compile(r"\(\s*[-+]?[0-9]{1,1000}(?:\s*,(?![-+]?[0-9]{3}(?![0-9]))\s*[-+]?[0-9]{1,1000})+\s*\)")
_SET_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\||:|\\colon)\s*(.*)\\\}$")
_LOWER_BOUNDS = re.compile(r"(\\geq?(?![A-Za-z])|>)")


def normalize(latex: str) -> str:
    r"""Mathematics as Math-Verify reads it best; what the text means stays the same.

    Removed: dollar signs and delimiters, a full stop, the argument in `f(x) =`. Rewritten: numerals, "percent", vectors
    in angle brackets to tuples, set-builder notation to its condition, chains of `>` to `<`.

    Args:
        latex: what `dynts.grading.plain.plain` gave.
    """
    text = latex.strip()
    if (wrapped := WRAPPED.fullmatch(text)) and any(map(str.isdigit, text)):
        text = wrapped[1].strip()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text).strip()
    text = text.rstrip(".,; ")
    if builder := _SET_BUILDER.match(text):
        name, condition = builder.groups()
        if name in condition and re.search(r"<|>|\\[gl]eq?(?![a-z])", condition) and "," not in condition:
            text = condition.strip()
    return _ascending(text)


def exact(latex: str) -> str:
    """Reduce a normalized answer to a string of what carries meaning, to compare by equality."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", unwrap(latex))
    # "1 2" is not "12"
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def unwrap(latex: str) -> str:
    r"""Take dollar signs away, and `\text` and its like; spaces of any kind become one space."""
    return _SPACES.sub(" ", WRAPPED.sub(r"\1", latex).replace("\\$", "").replace("$", "")).strip()


def as_whole_numbers(latex: str) -> tuple[int, ...] | None:
    """Return the value of a whole number, thousands separators included, or those of a tuple of them.

    None for anything else.

    Equal values are equal answers: a tuple has at least two entries, and entries that could be groups of digits are not
    read.
    """
    if _INTEGER.fullmatch(latex):
        return (int(latex.replace(",", "")),)
    return tuple(map(int, latex[1:-1].split(","))) if _TUPLE.fullmatch(latex) else None


def _ascending(text: str) -> str:
    """Turn a chain such as a > b > c into c < b < a."""
    pieces = _LOWER_BOUNDS.split(text)
    if len(pieces) < 5 or "<" in text or "\\le" in text or "," in text:
        return text
    flipped = ["\\le " if piece.startswith("\\") else "<" for piece in pieces[1::2]]
    terms = [piece.strip() for piece in pieces[0::2]]
    chain = terms[-1]
    for term, relation in zip(reversed(terms[:-1]), reversed(flipped), strict=True):
        chain += f" {relation} {term}"
    return chain
