r"""Is the boxed answer of a text the gold answer?"""

import logging
import re
from typing import Any

from math_verify import parse, verify

from dynts.chat.markers import END
from dynts.chat.thinking import answer_of
from dynts.grading.boxed import last_boxed
from dynts.grading.normalize import as_whole_numbers, exact, normalize
from dynts.grading.plain import plain
from dynts.grading.units import conversion, split_unit
from dynts.grading.words import compare_words


def is_correct_by_math_verify(answer_text: str, gold: str) -> bool:
    """Return Math-Verify's verdict with its own extraction, normalization and defaults.

    The gold answer is given as LaTeX.

    Without its limit of time, which is an alarm signal; see `dynts.grading.compare.is_correct`.

    Args:
        answer_text: what follows the thinking.
        gold: the gold answer.
    """
    expected = parse(f"${gold.strip().strip('$')}$", parsing_timeout=None)
    return bool(verify(expected, parse(answer_text, parsing_timeout=None), timeout_seconds=None))


_SET = re.compile(r"\\\{[^()]*\\\}")
_TUPLE = re.compile(r"\([^()]*,.*\)")


def is_correct(answer_text: str, gold: str) -> bool | None:
    r"""Compare the last boxed answer of a text with the gold answer, in this process.

    The exact rules are in docs/reference/grading.md. Words and choice letters are compared as text; equal strings,
    whole numbers and tuples of them are decided at once; all other mathematics by Math-Verify, which takes some 10 ms.

    There is no time limit: `\boxed{9^{9^{9^9}}}` goes on for ever. So this is for text that is known to be tame, such
    as what the embedded model writes; for the output of any other model use `dynts.grading.grader.Grader`.
    Math-Verify's own limit is an alarm signal, which is of no use: it works in the main thread only, and even there
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
    """Return `is_correct` of what follows the last closing think marker; a response without one is not correct.

    Args:
        response: of the model.
        gold: the gold answer.
        end: the closing think marker.
    """
    answer = answer_of(response, end)
    return False if answer is None else is_correct(answer, gold)


def same_answer(given: str, gold: str) -> bool | None:
    """Say whether two answers, without their boxes, are the same; None if either cannot be read.

    Args:
        given: the answer.
        gold: the gold answer.

    Raises:
        Exception: whatever Math-Verify and SymPy raise on odd input.
    """
    given, gold = plain(given), plain(gold)
    try:
        return compare_words(given, gold)
    except LookupError:
        (given, given_unit), (gold, gold_unit) = split_unit(normalize(given)), split_unit(normalize(gold))
    if not given or not gold:
        return None
    factor = conversion(given_unit, gold_unit)
    if factor is None or _are_set_and_tuple(given, gold) or _are_set_and_tuple(gold, given):
        return False
    if factor != 1:
        given = f"\\frac{{{factor.numerator}}}{{{factor.denominator}}} \\cdot ({given})"
    if exact(given) == exact(gold):
        return True
    given_numbers, gold_numbers = as_whole_numbers(given), as_whole_numbers(gold)
    if given_numbers is not None and gold_numbers is not None:
        return given_numbers == gold_numbers
    return _same_mathematics(given, gold)


def _same_mathematics(given: str, gold: str) -> bool | None:
    """Compare what Math-Verify reads.

    A percentage equals its value, and the same number where the sign may be left out.
    """
    same = _verify(given, gold)
    given_number, gold_number = (text.removesuffix(r"\%").strip() for text in (given, gold))
    one_has_sign = (given_number == given) != (gold_number == gold)
    # gold 15 is 15% where a percentage was asked for, but gold 0.15 is not 0.15%
    if same is False and one_has_sign and (gold_number != gold or _at_least_one(gold)):
        return _verify(given_number, gold_number)
    return same


def _verify(given: str, gold: str) -> bool | None:
    # deferred: SymPy takes half a second to import
    from dynts.grading.values import same_value

    expected, answer = _read(gold), _read(given)
    return None if expected is None or answer is None else same_value(expected, answer)


def _read(latex: str) -> Any:
    """Return a SymPy object, None if it is no mathematics."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # units=False: Math-Verify takes a trailing variable for a unit, and 2a + 3c for 2a + 3
    config = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(malformed_operators=True, nits=True, boxed="all"),
    )
    found = parse(f"\\boxed{{{latex}}}", (config,), fallback_mode="no_fallback", parsing_timeout=None)
    if not found and not re.search("[A-Za-z]", latex):
        found = parse(latex, (ExprExtractionConfig(),), fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _are_set_and_tuple(first: str, second: str) -> bool:
    """Return whether the one is in braces, where order does not matter, and the other in parentheses, where it does."""
    return bool(_SET.fullmatch(first) and _TUPLE.fullmatch(second))


def _at_least_one(latex: str) -> bool:
    try:
        return abs(float(latex)) >= 1
    except ValueError:
        return False
