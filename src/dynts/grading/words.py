"""Answers that are no mathematics: letters of a choice, words, times of day, numbers written in another base."""

import re

from dynts.grading.normalize import unwrap
from dynts.grading.units import WRAPPED

_LETTER = re.compile(r"\(?([A-K])\)?\.?")
_CHOSEN = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(([A-K])\).*|([A-K])(?:\s*[.:)].*)?)", re.I | re.S)
_SEVERAL = re.compile(r"\(?[A-K]\)?(?:(?:,|;|&|and|or|\s)*\(?[A-K]\)?)+", re.I)
_JOINING = re.compile(r"\b(?:and|or)\b", re.I)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?(?:no (?:such )?(?:real )?(?:solutions?|roots?)(?: exists?)?|none)"
    r"|(?:the )?(?:empty|null) set|\\emptyset|\\varnothing|\\\{ ?\\\}"
)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'’-]+[^\W\d_]+)*")
_ARTICLE = re.compile(r"\b(?:an?|the)\b")
_TIME = re.compile(r"(\d{1,2})(?:\s*:\s*(\d\d))?\s*([ap])\.?\s?m\.?", re.I)
_BASED = re.compile(r"(\d+)_\{?(\d+)\}?")


def compare_words(given: str, gold: str) -> bool | None:
    r"""Compare with a gold answer that is no mathematics.

    - One letter from A to K, also `(C)` and `\text{C}`: a choice. The given answer may go on after the letter, as in
      "C. 3/4" or "(C) 3/4". Several letters are wrong; an answer that is no letter is ungradable, for only the question
      tells which letter it belongs to.
    - Several letters (`ABD`, `A, B, D`): the same ones, however they are written and ordered.
    - No solution, the empty set: in words or as a sign.
    - Words, wholly inside `\text` or with one of at least four letters: equal but for case, articles and full stops.
    - Times of day (`1:58 am`, `5am`): equal in hour, minute and half of the day.
    - A number in another base (`52_8`): equal digits in the same base, which the given answer may leave out.

    Args:
        given: the answer.
        gold: the gold answer.

    Returns:
        True, False, or None for ungradable.

    Raises:
        LookupError: the gold answer is none of these.
    """
    given_text, gold_text = unwrap(given), unwrap(gold)
    if letter := _LETTER.fullmatch(gold_text):
        chosen = _CHOSEN.fullmatch(given_text)
        if chosen is not None:
            return (chosen[1] or chosen[2]).upper() == letter[1]
        return False if _SEVERAL.fullmatch(given_text) else None
    several, given_letters = _letters(gold_text), _letters(given_text)
    if len(several) > 1 and _JOINING.sub("", gold_text).isupper() and given_letters:
        return given_letters == several
    if _is_nothing(given_text) and _is_nothing(gold_text):
        return True
    time, given_time = _TIME.fullmatch(gold_text), _TIME.fullmatch(given_text.replace("{:}", ":"))
    if time and given_time:
        return _clock(given_time) == _clock(time)
    if based := _BASED.fullmatch(gold_text):
        digits, _, base = given_text.replace("{", "").replace("}", "").partition("_")
        return digits.strip() == based[1] and base.strip() in ("", based[2])
    if _is_words(gold, gold_text):
        return _plain(given_text) == _plain(gold_text)
    raise LookupError(gold)


def _letters(text: str) -> set[str]:
    """Return the letters of a choice, each named once."""
    letters = re.findall("[A-Za-z]", _JOINING.sub(" ", text).upper())
    several = _SEVERAL.fullmatch(text) or _LETTER.fullmatch(text)
    return set(letters) if several and len(set(letters)) == len(letters) else set()


def _is_nothing(text: str) -> bool:
    return bool(_NOTHING.fullmatch(text.lower().strip(" .")))


def _clock(time: re.Match[str]) -> tuple[int, int, str]:
    return int(time[1]), int(time[2] or 0), time[3].lower()


def _is_words(gold: str, text: str) -> bool:
    wrapped = WRAPPED.fullmatch(gold.strip(" $"))
    return bool(_WORDS.fullmatch(text)) and (wrapped is not None or bool(re.search(r"[^\W\d_]{4}", text)))


def _plain(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text.lower()).strip(" .").split())
