r"""Undo typography: what letters, digits and commands look like, or where they stand, does not change an answer."""

import re
import unicodedata

from dynts.grading.boxed import closing_brace

_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "±": r"\pm ", "°": r"^\circ ", "º": r"^\circ ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "∠": r"\angle ", "∛": r"\sqrt[3]",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⁄": "/", "∕": "/", "٫": ".", "٬": ",", "٪": "%",
}  # fmt: skip
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER (\w+)")
_SHIFTED = re.compile(r"(\^|_)\{([^{}]+)\}(?:\1\{([^{}]+)\})+")
_DROPPED = re.compile(
    r"\\(?:display|text|script|scriptscript)style(?![A-Za-z])"
    r"|\\(?:left|right)\s*(?:\.|(?![A-Za-z]))"
    r"|\\[bB]igg?[lrm]?(?![A-Za-z])"
    r"|\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|boldmath|unboldmath|bfseries"
    r"|itshape|rmfamily|centering|strut|mathstrut|noindent|nolimits|limits|allowbreak|nonumber|notag)(?![A-Za-z])"
    r"|\\(?:tag|label|hspace|vspace|mspace|phantom|hphantom|vphantom|color|textcolor|colorbox)\*?\s*(?:\[[^\]]*\])?\s*"
    r"\{[^{}]*\}"
    r"|\\fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\}"
    r"|\\color\s+\w+\s"
)
_STYLED = re.compile(r"\\(?:underline|uline|boldsymbol|bm|pmb|ensuremath|mathit|mathnormal|textup|emph)(?=\s*\{)")
_CONSTANT = re.compile(
    r"\\(?:mathrm|text|textrm|operatorname|mathit|textit)\s*\{\s*([ei])\s*\}|\{\s*\\rm\s+([ei])\s*\}"
)
_INFINITY = re.compile(
    r"(?:\\[a-z]+\s*\{\s*)?(?<![A-Za-z\\])(?:([+-])|(?:positive|(negative))\s+)?\binfinity\b(?:\s*\})?", re.IGNORECASE
)


def plain(latex: str) -> str:
    r"""Rewrite an answer in ASCII digits and LaTeX commands, without what only styles it.

    Digits of any script and width, Unicode fractions, superscripts, subscripts, Greek letters and signs become LaTeX
    (NFKC does most of it); sizes, spaces of a length, colours, tags, `\left` and `\right` are dropped; an upright e or
    i is the number.
    """
    text = "".join(map(_spelled, latex))
    text = "".join(map(_ascii, unicodedata.normalize("NFKC", text)))
    text = _SHIFTED.sub(lambda run: f"{run[1]}{{{''.join(re.findall(r'[{]([^{}]+)[}]', run[0]))}}}", text)
    text = _INFINITY.sub(lambda it: f"{'-' if it[2] else it[1] or ''}\\infty ", text)
    text = _CONSTANT.sub(r"\1\2", _STYLED.sub("", _DROPPED.sub("", text))).strip()
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _spelled(character: str) -> str:
    """Return what NFKC would merge with its neighbours: 2½ into 21/2, x² into x2."""
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    kind, _, codes = unicodedata.decomposition(character).partition(" ")
    if kind not in ("<fraction>", "<super>", "<sub>"):
        return character
    letters = "".join(chr(int(code, 16)) for code in codes.split())
    if kind != "<fraction>":
        return f"{'^' if kind == '<super>' else '_'}{{{letters.replace('−', '-')}}}"
    numerator, _, denominator = letters.partition("⁄")
    return f"\\frac{{{numerator}}}{{{denominator}}}" if denominator else character


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) == "Zs":
        return " "
    if greek := _GREEK.fullmatch(unicodedata.name(character, "")):
        name = greek[2].replace("LAMDA", "LAMBDA").lower()
        return f"\\{name if greek[1] == 'SMALL' else name.capitalize()} "
    return character
