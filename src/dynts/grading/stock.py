"""What Math-Verify alone says of an answer, to compare figures with those of others."""

from math_verify import parse, verify


def is_correct_by_math_verify(answer_text: str, gold: str) -> bool:
    """Math-Verify's verdict with its own extraction, normalization and defaults; the gold answer is given as LaTeX.

    Without its limit of time, which is an alarm signal; see `dynts.grading.compare.is_correct`.
    """
    expected = parse(f"${gold.strip().strip('$')}$", parsing_timeout=None)
    return bool(verify(expected, parse(answer_text, parsing_timeout=None), timeout_seconds=None))
