r"""Rewrite what Math-Verify would misread: Unicode signs, units, digit groups, percent signs, set-builder notation."""

import re
from collections.abc import Callable

_SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
    "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "°": r"^\circ ", "²": "^2", "³": "^3",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_TEXT = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|mathrm|mathbf|mathsf|operatorname|bf|rm)"
WRAPPED = re.compile(rf"{_TEXT}\s*\{{([^{{}}]*)\}}")
_SPACES = re.compile(r"\\[,;: ]|~|\\q?quad(?![a-z])|\s+")
_MAGNITUDES = {"thousand": 3, "million": 6, "billion": 9}
_POWER = r"(?:\s*\^\s*(?:\d|\{\d\}))?"
_REPLACEMENTS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"√\s*\(([^()]*)\)|√\s*(\w+)"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ"), r"^\\circ "),
    # a scale of temperature is a unit
    (re.compile(rf"(\^\\circ\s*)(?:{_TEXT}\s*\{{\s*[CF]\s*\}}|[CF])\s*$"), r"\1"),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\(?:mid|vert)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(rf"\s*(?:{_TEXT}\s*\{{\s*percent\s*\}}|\bpercent\b)"), r"\\%"),
    (re.compile(r"(?<!\\)%"), r"\\%"),
    (
        re.compile(rf"\s*(?:{_TEXT}\s*\{{\s*)?\b(thousand|million|billion)\b[^{{}}]*\}}?\s*$"),
        lambda match: rf"\times 10^{_MAGNITUDES[match[1]]}",
    ),
    (re.compile(r"\\\$|\$|\\[()\[\]]|€|£|¢|\\!\s*"), ""),
    (re.compile(r"(?<![\d.,])(?:\d{1,3}(?:(?:\\[,;: ]|~|\{,\}| )\d{3})+)(?![\d,])"), lambda m: re.sub(r"\D", "", m[0])),
    (re.compile(r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\binom\s*(\d)\s*(\d)"), r"\\binom{\1}{\2}"),
    # of factors side by side with a binomial Math-Verify reads only one
    (re.compile(r"(?<=[\d})])\s*(?=\\binom)"), r" \\cdot "),
    (re.compile(r"(\\binom\{[^{}]*\}\{[^{}]*\})\s*(?=[\w(])"), r"\1 \\cdot "),
    (re.compile(r"^(?:=|≈|\\approx)\s*|(?<=\d)solution:$"), ""),  # GK23EN has a gold answer "$145$solution:"
    (re.compile(r"^([A-Za-z])\([A-Za-z](?:,\s*[A-Za-z])*\)\s*="), r"\1 ="),
]
_INTEGER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,1000})")
# an entry of three digits right after a comma could be the rest of a number: (1,234)
_TUPLE = re.compile(r"\(\s*[-+]?[0-9]{1,1000}(?:\s*,(?![-+]?[0-9]{3}(?![0-9]))\s*[-+]?[0-9]{1,1000})+\s*\)")
_UNITS = re.compile(
    rf"(?<=[\w}}).\s])\s*(?:\\[,;: ]|~|\s)*(?:"
    rf"{_TEXT}\s*\{{(?!\s*or\b)[^{{}}]*\}}{_POWER}"  # 15\text{ cm}^2
    rf"|(?:square|cubic)?\s*[cdkm]m\s*\^\s*(?:[23]|\{{[23]\}})"  # 15cm^{2}; lone letters are variables: 5am
    rf"|\\[,;: ]\s*m\s*\^\s*(?:[23]|\{{[23]\}})"
    rf"|(?<=[\d}}\s])(?:[cdkm]m|kg)"
    rf"|(?<=[\d}}]\s)(?:[A-Za-z]{{4,}}|per)(?:\s+[A-Za-z]+)*"  # 18 eggs
    rf")\s*$"
)
_SET_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\||:|\\colon)\s*(.*)\\\}$")
_LOWER_BOUNDS = re.compile(r"(\\geq?(?![A-Za-z])|>)")
_COLUMN = re.compile(r"\\begin\{([pb])matrix\}([^&]*)\\end\{\1matrix\}")


def normalize(latex: str) -> str:
    r"""Mathematics as Math-Verify reads it best; what the text means stays the same, but for its trailing unit.

    Removed: dollar signs and delimiters, `\left` and `\right`, a full stop, the unit at the end (`\text{ cm}^2`, `cm^{2}`,
    "eggs"), the argument in `f(x) =`. Rewritten: Unicode signs, groups of digits (`10\,080`), "percent", set-builder
    notation to its condition, chains of `>` to `<`. Variables of one or two letters are never taken for units.
    """
    text = "".join(_SIGNS.get(character, character) for character in latex).strip()
    if (wrapped := WRAPPED.fullmatch(text)) and any(map(str.isdigit, text)):
        text = wrapped[1].strip()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text).strip()
    text = text.rstrip(".,; ")
    without = _UNITS.sub("", text).strip()
    text = without or text
    if builder := _SET_BUILDER.match(text):
        name, condition = builder.groups()
        if name in condition and re.search(r"<|>|\\[gl]eq?(?![a-z])", condition) and "," not in condition:
            text = condition.strip()
    return _ascending(text)


def exact(latex: str) -> str:
    """A normalized answer as a string in which only what carries meaning is left, to compare by equality."""
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", unwrap(latex))
    # "1 2" is not "12"
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def unwrap(latex: str) -> str:
    r"""The text without dollar signs and without `\text` and its like; spaces of any kind are one space."""
    return _SPACES.sub(" ", WRAPPED.sub(r"\1", latex).replace("\\$", "").replace("$", "")).strip()


def as_whole_numbers(latex: str) -> tuple[int, ...] | None:
    """The value of a whole number, thousands separators included, or those of a tuple of them; None for anything else.

    Equal values are equal answers: a tuple has at least two entries, and entries that could be groups of digits are not read.
    """
    if _INTEGER.fullmatch(latex):
        return (int(latex.replace(",", "")),)
    return tuple(map(int, latex[1:-1].split(","))) if _TUPLE.fullmatch(latex) else None


def as_tuple(latex: str) -> str:
    """A column vector as a tuple; anything else unchanged."""
    column = _COLUMN.fullmatch(latex)
    return latex if column is None else "(" + ",".join(column[2].strip().removesuffix("\\\\").split("\\\\")) + ")"


def _ascending(text: str) -> str:
    """A chain such as a > b > c as c < b < a."""
    pieces = _LOWER_BOUNDS.split(text)
    if len(pieces) < 5 or "<" in text or "\\le" in text or "," in text:
        return text
    flipped = ["\\le " if piece.startswith("\\") else "<" for piece in pieces[1::2]]
    terms = [piece.strip() for piece in pieces[0::2]]
    chain = terms[-1]
    for term, relation in zip(reversed(terms[:-1]), reversed(flipped), strict=True):
        chain += f" {relation} {term}"
    return chain
