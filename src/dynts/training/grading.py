"""Is the final answer right?"""

import logging
import threading

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_TIMEOUT = 5


def is_correct(answer_text: str, gold: str) -> bool | None:
    """Compare the last boxed answer of a text with the gold answer, by Math-Verify.

    Args:
        answer_text: what the model wrote after its thinking.
        gold: the right answer, as text or LaTeX.

    Returns:
        None if there is no boxed answer, or if either answer cannot be read as mathematics.
    """
    start = answer_text.rfind("\\boxed")
    if start < 0:
        return None
    # Math-Verify's time limit is an alarm signal, which only the main thread can set
    timeout = _TIMEOUT if threading.current_thread() is threading.main_thread() else None
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    extraction = (LatexExtractionConfig(), ExprExtractionConfig())
    try:
        expected = parse(f"\\boxed{{{gold}}}", extraction, parsing_timeout=timeout)
        given = parse(answer_text[start:], extraction, parsing_timeout=timeout)
        if not expected or not given:
            return None
        return bool(verify(expected, given, timeout_seconds=timeout))
    except Exception:  # one odd answer must not end the labelling of thousands of traces
        return None
