r"""Is the boxed answer of a text the gold answer?"""

import logging
import math
import re
from typing import Any

from dynts.grading.boxed import last_boxed
from dynts.grading.normalize import as_tuple, as_whole_numbers, exact, normalize
from dynts.grading.words import compare_words
from dynts.markers import END

_SIGNIFICANT_DIGITS = 6


def is_correct(answer_text: str, gold: str) -> bool | None:
    r"""Compare the last boxed answer of a text with the gold answer, in this process.

    The exact rules are in docs/grading.md. Words and choice letters are compared as text; equal strings, whole numbers
    and tuples of them are decided at once; all other mathematics by Math-Verify, which takes some 10 ms.

    There is no time limit: `\boxed{9^{9^{9^9}}}` goes on for ever. So this is for text that is known to be tame, such as
    what the embedded model writes; for the output of any other model use `dynts.grading.grader.Grader`. Math-Verify's
    own limit is an alarm signal, which is of no use: it works in the main thread only, and even there
    `\boxed{(x+1)^{100000}}` outlives it.

    Args:
        answer_text: what the model wrote after its thinking.
        gold: the right answer, as text or LaTeX.

    Returns:
        None if there is no boxed answer, or if either answer cannot be read.
    """
    try:
        given = last_boxed(answer_text)
        return None if given is None else same_answer(given, gold)
    except Exception:  # one odd answer must not end the labelling of thousands of traces
        return None


def is_response_correct(response: str, gold: str, end: str = END) -> bool | None:
    """`is_correct` of what follows the last closing think marker; a response without one is not correct."""
    _, closed, answer_text = response.rpartition(end)
    return is_correct(answer_text, gold) if closed else False


def same_answer(given: str, gold: str) -> bool | None:
    """Whether two answers, without their boxes, are the same; None if either cannot be read.

    Raises:
        Exception: whatever Math-Verify and SymPy raise on odd input.
    """
    try:
        return compare_words(given, gold)
    except LookupError:
        given, gold = normalize(given), normalize(gold)
    if not given or not gold:
        return None
    if exact(given) == exact(gold):
        return True
    given_numbers, gold_numbers = as_whole_numbers(given), as_whole_numbers(gold)
    if given_numbers is not None and gold_numbers is not None:
        return given_numbers == gold_numbers
    if given.startswith("(") != gold.startswith("("):
        given, gold = as_tuple(given), as_tuple(gold)
    return _same_mathematics(given, gold)


def _same_mathematics(given: str, gold: str) -> bool | None:
    """Compare by Math-Verify; a percentage equals its value, and the same number where the sign may be left out."""
    same = _verify(given, gold)
    given_number, gold_number = (text.removesuffix(r"\%").strip() for text in (given, gold))
    if same is False and (given_number == given) != (gold_number == gold):
        value = _float(gold_number)
        # gold 15 is 15% where a percentage was asked for, but gold 0.15 is not 0.15%
        if gold_number != gold or (value is not None and abs(value) >= 1):
            return _verify(given_number, gold_number)
    return same


def _verify(given: str, gold: str) -> bool | None:
    # deferred: SymPy takes half a second to import
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # units=False: Math-Verify takes a trailing variable for a unit, and 2a + 3c for 2a + 3
    latex = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(malformed_operators=True, nits=True, boxed="all"),
    )

    def read(text: str) -> list[Any]:
        found = parse(f"\\boxed{{{text}}}", (latex,), fallback_mode="no_fallback", parsing_timeout=None)
        if not found and not re.search("[A-Za-z]", text):
            found = parse(text, (ExprExtractionConfig(),), fallback_mode="no_fallback", parsing_timeout=None)
        return found

    expected, answer = read(gold), read(given)
    if not expected or not answer:
        return None
    return bool(
        verify(
            expected,
            answer,
            float_rounding=_decimals(expected[0]),
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )


def _decimals(gold: Any) -> int:
    """Decimal places to compare: six significant digits of a small number, six places of others."""
    value = _float(gold)
    if value is None or not 0 < abs(value) < 1:
        return _SIGNIFICANT_DIGITS
    return _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
