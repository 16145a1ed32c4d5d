r"""Units at the end of an answer (`15\text{ cm}^2`, `60 km/h`) and currencies: what they are, and whether two agree."""

import re
from collections import Counter
from fractions import Fraction

TEXT = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|mathrm|mathbf|mathsf|operatorname|bf|rm)"
WRAPPED = re.compile(rf"{TEXT}\s*\{{([^{{}}]*)\}}")

_Size = tuple[Fraction, Counter[str]]
"""How many, of which base units to which powers."""

_TABLE = """
m meter metre
s sec second
g gram gramme
celsius c
fahrenheit f
month
usd dollar
eur euro
gbp
inr rupee
cny rmb yuan
jpy yen
hz hertz                     = 1 / s
km kilometer kilometre       = 1000 m
dm decimeter decimetre       = 1/10 m
cm centimeter centimetre     = 1/100 m
mm millimeter millimetre     = 1/1000 m
nm nanometer nanometre       = 1/1000000000 m
in inch inche                = 254/10000 m
ft foot feet                 = 12 in
yd yard                      = 3 ft
mi mile                      = 1760 yd
hectare                      = 10000 m^2
acre                         = 4840 yd^2
l liter litre                = 1 dm^3
ml milliliter millilitre     = 1/1000 l
ms millisecond               = 1/1000 s
min minute                   = 60 s
h hr hour                    = 60 min
day                          = 24 h
week                         = 7 day
yr year                      = 12 month
mph                          = 1 mi/h
kmh kph kmph                 = 1 km/h
kg kilogram                  = 1000 g
mg milligram                 = 1/1000 g
ton tonne                    = 1000 kg
oz ounce                     = 28349523125/1000000000 g
lb pound                     = 16 oz
n newton                     = 1 kg m/s^2
j joule                      = 1 n m
w watt                       = 1 j/s
cent                         = 1/100 usd
"""
"""Names of a unit, and its size in units above it. A "kilogram" of 1000 g; plurals are understood."""

_SHAPES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "degree": 1, "degrees": 1}
_TOKEN = re.compile(
    r"(?P<number>\d+(?:/\d+)?)|(?P<word>[A-Za-z]+)\.?(?:\s*\^\s*\{?(?P<power>-?\d)\}?|\s+(?P<spoken>squared|cubed)\b)?"
    r"|(?P<sign>/|\\cdot|\*|\s)"
)


def _size(text: str, sizes: dict[str, _Size]) -> _Size | None:
    """Return the size of a product of units; None if it holds another word, or no unit."""
    scale, bases, sign, shape, position = Fraction(1), Counter[str](), 1, 1, 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position, word = token.end(), (token["word"] or "").lower()
        if token["number"]:
            scale *= Fraction(token["number"])
        elif token["sign"] == "/" or word == "per":
            sign = -1
        elif word in _SHAPES:
            shape = _SHAPES[word]
        elif word:
            unit = sizes.get(word) or sizes.get(word.removesuffix("s"))
            if unit is None:
                return None
            power = sign * shape * int(token["power"] or {"squared": 2, "cubed": 3}.get(token["spoken"], 1))
            scale, shape = scale * unit[0] ** power, 1
            bases.update({base: count * power for base, count in unit[1].items()})
    return (scale, Counter({base: count for base, count in bases.items() if count})) if bases else None


def _sizes() -> dict[str, _Size]:
    sizes: dict[str, _Size] = {}
    for line in _TABLE.strip().splitlines():
        names, _, definition = line.partition("=")
        first, *others = names.split()
        size = _size(definition.strip(), sizes) or (Fraction(1), Counter({first: 1}))
        sizes |= dict.fromkeys((first, *others), size)
    return sizes


_SIZES = _sizes()
_POWER = r"(?:\s*\^\s*(?:-?\d|\{-?\d\}))?"
_SPACE = r"(?:\\[,;: ]|~|\s)"
# which short names may touch their number: other letters there are factors, as in 5am, 2nm and 2s
_TOUCHING = r"(?:[cdkm]m|[km]g|m[lL]|ft|lbs?|oz|mph|km?ph|kmh|mins?|secs?|hrs?|[HK]z|USD|EUR|GBP|INR|CNY|RMB|JPY)"
_SPACED = rf"(?:{_TOUCHING}|in|mi|yds?|yrs?|days?)"
_WRAPPED = rf"{TEXT}\s*\{{(?!\s*or\b)[^{{}}]*\}}"
_ATOM = (
    rf"(?:{_WRAPPED}|(?:(?<=[\d}}]){_TOUCHING}|"
    rf"(?<![A-Za-z\d}}\\])(?:(?:square|cubic|sq|cu)\.?\s+)?{_SPACED})(?![A-Za-z]))"
)
_FACTOR = rf"(?:{_ATOM}|[gmshJKL](?![A-Za-z])){_POWER}"
_UNITS = re.compile(
    rf"(?<=[\w}}).%\s]){_SPACE}*(?P<unit>"
    rf"\^\s*\\circ\s*(?:{TEXT}\s*\{{\s*[CF]\s*\}}|[CF])"
    rf"|\\frac\s*\{{\s*{_FACTOR}\s*\}}\s*\{{\s*{_FACTOR}\s*\}}"
    rf"|{_ATOM}{_POWER}(?:{_SPACE}*(?:/|\\cdot|\*|per\b)?{_SPACE}*{_FACTOR})*"  # 15\text{ cm}^2, 60 km/h, 5am
    rf"|(?<=[\d}}\s])[gmJL]\s*/\s*{_FACTOR}"
    rf"|(?<=\\[,;: ])m\s*\^\s*(?:[23]|\{{[23]\}})"
    rf"|(?<=[\d}}]\s)(?:[A-Za-z]{{4,}}|per)(?:\s+[A-Za-z]+)*"  # 18 eggs
    rf")\s*$"
)
_FRACTION = re.compile(r"\\frac\s*\{(.*)\}\s*\{(.*)\}")
_SIGNS = {r"\$": "usd", "€": "eur", "£": "gbp", "¥": "jpy", "₹": "inr", r"\pounds": "gbp", r"\euro": "eur"}
_SIGN = re.compile(r"(?:US)?\\\$|[€£¥₹]|\\(?:pounds|euro)(?![A-Za-z])")
_CODE = re.compile(
    rf"^(?P<minus>-?)\s*(?:{TEXT}\s*\{{\s*)?(?P<code>USD|EUR|GBP|INR|CNY|RMB|JPY|Rs)\b\.?(?:\s*\}})?{_SPACE}*(?=[-\d.\\])"
)


def split_unit(latex: str) -> tuple[str, str]:
    r"""Split an answer from the unit at its end and the currency before it; the unit is "" if there is none.

    Units are what stands in `\text`, words of four letters, common short names and their quotients and powers. Letters
    that stand alone or touch a number are variables (`2s`, `5am`).
    """
    text, unit = latex.replace("¢", " cents"), ""
    if sign := _SIGN.search(text):
        text, unit = _SIGN.sub("", text).strip(), _SIGNS[sign[0].removeprefix("US")]
    elif code := _CODE.match(text):
        text, unit = code["minus"] + text[code.end() :], code["code"]
    text = text.replace("$", "").strip()
    if (found := _UNITS.search(text)) and (value := re.sub(rf"{_SPACE}+$", "", text[: found.start()])):
        # "$18 per hour": the question says per what
        return value, unit or found["unit"]
    return text, unit


def conversion(given: str, gold: str) -> Fraction | None:
    """Return how many of the gold answer's unit one of the given answer's is.

    Args:
        given: a unit of `split_unit`.
        gold: likewise.

    Returns:
        1 where one of them has no unit that is known, None where they differ in kind.
    """
    given_size, gold_size = _read(given), _read(gold)
    if given_size is None or gold_size is None:
        return Fraction(1)
    return given_size[0] / gold_size[0] if given_size[1] == gold_size[1] else None


def _read(unit: str) -> _Size | None:
    if fraction := _FRACTION.fullmatch(unit):
        unit = f"{fraction[1]}/{fraction[2]}"
    unit = WRAPPED.sub(lambda wrapped: f" {wrapped[1].strip()}", unit)
    return _size(re.sub(r"\\[,;: ]|~|\^\s*\\circ", " ", unit).strip(), _SIZES)
