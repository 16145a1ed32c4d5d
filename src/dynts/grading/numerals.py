r"""Numerals that Math-Verify would misread: repeating decimals, mixed numbers, powers of ten, groups of digits."""

import re
from collections.abc import Callable
from fractions import Fraction

Replacement = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_MAGNITUDES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_DIGITS = r"\d{1,300}"
_SPACE = r"(?:\\[,;: ]|~|\s)"
_DOTS = r"(?:\\[dlc]?dots|\.\.\.)"


def _repeating(decimal: re.Match[str]) -> str:
    fixed, block = decimal["fixed"], decimal["block"]
    shift = 10 ** len(fixed)
    value = Fraction(int(decimal["whole"] + fixed or 0), shift) + Fraction(int(block), shift * (10 ** len(block) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(number: re.Match[str]) -> str:
    whole, numerator, denominator = map(int, number.groups())
    if numerator >= denominator:  # a product
        return number[0]
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


REWRITINGS: list[Replacement] = [
    (
        re.compile(rf"(?<![\d.,])(?:\d{{1,3}}(?:(?:{_SPACE}|\{{,\}})\d{{3}})+)(?![\d,])"),
        lambda it: re.sub(r"\D", "", it[0]),
    ),
    # all repeating decimals as 0.1\overline{6}: \bar, \dot, combining marks, 0.(6), 0.1666...
    (re.compile(r"(\d)\u0307"), r"\\dot{\1}"),
    (re.compile(r"(?:\d[\u0304\u0305])+"), lambda it: f"\\overline{{{re.sub('[^0-9]', '', it[0])}}}"),
    (re.compile(r"\\dot\s*\{?(\d)\}?(\d{0,300})\\dot\s*\{?(\d)\}?"), r"\\overline{\1\2\3}"),
    (re.compile(rf"\\(?:overline|bar|dot)\s*(?:\{{\s*({_DIGITS})\s*\}}|(\d))"), r"\\overline{\1\2}"),
    (re.compile(rf"(?<=\d\.)\(({_DIGITS})\)"), r"\\overline{\1}"),
    (re.compile(rf"(?<=\.)(\d{{0,20}}?)(\d{{1,20}}?)\2\2+{_DOTS}"), r"\1\\overline{\2}"),
    (
        re.compile(rf"(?<![\d.])(?P<whole>\d{{0,300}})\.(?P<fixed>\d{{0,300}})\\overline\{{(?P<block>\d+)\}}{_DOTS}?"),
        _repeating,
    ),
    (re.compile(r"\\(?:[dtcs]|nice)frac(?![A-Za-z])"), r"\\frac"),
    (
        re.compile(rf"\\frac\s*(?:(\d)|\{{\s*({_DIGITS})\s*\}})\s*(?:(\d)|\{{\s*({_DIGITS})\s*\}})"),
        r"\\frac{\1\2}{\3\4}",
    ),
    (re.compile(rf"(?<![\w.}})^/])({_DIGITS}){_SPACE}*\\frac\{{({_DIGITS})\}}\{{({_DIGITS})\}}"), _mixed),
    (re.compile(rf"(?<![\w.}})^/])({_DIGITS}){_SPACE}+({_DIGITS})\s*/\s*({_DIGITS})(?![\w.^])"), _mixed),
    # 1.6e-19; but 2e-5 is 2e - 5
    (
        re.compile(r"(?<![\w.])(\d*\.\d+|\d+(?=[eE][+\d]|[eE]-0))[eE]\+?(-?)0*(\d{1,4})(?![\w.])"),
        r"\1 \\times 10^{\2\3}",
    ),
    (re.compile(r"\^\s*([-+]\s*(?:\d+|[A-Za-z]))"), r"^{\1}"),
    (
        re.compile(rf"\s*(?:\\\w+\s*\{{\s*)?\b({'|'.join(_MAGNITUDES)})\b[^{{}}]*\}}?\s*$"),
        lambda it: rf"\times 10^{{{_MAGNITUDES[it[1]]}}}",
    ),
]
"""One after another, on LaTeX without fonts and colours."""
