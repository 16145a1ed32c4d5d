"""What counts as the answer of a response, and whether it is right."""

from dynts.chat.thinking import answer_of
from dynts.grading.boxed import last_boxed
from dynts.grading.grader import MATH_VERIFY, Grader, Verdict
from dynts.traces.record import TraceRow


def answer_text(response: str, thinking: bool) -> str | None:
    """Return what follows the last closing think marker, None without one.

    Args:
        response: of the model.
        thinking: False for a model that does not think, of whose response all is the answer.
    """
    return answer_of(response) if thinking else response


def given_answer(response: str, thinking: bool) -> str | None:
    """Return the last boxed answer, as the model wrote it; None if there is none.

    Args:
        response: of the model.
        thinking: see `answer_text`.
    """
    text = answer_text(response, thinking)
    return None if text is None else last_boxed(text)


def judge_answer(response: str, gold: str, grader: Grader, thinking: bool) -> tuple[str | None, bool]:
    """Judge the answer alone: unlike a trace to train on, a response may have odd think markers.

    Args:
        response: of the model.
        gold: the gold answer.
        grader: compares answers.
        thinking: see `answer_text`.

    Returns:
        Why it is not right, "unfinished" or a `Verdict`, and None where it is; and whether it is right.
    """
    text = answer_text(response, thinking)
    if text is None:
        return "unfinished", False
    verdict = grader.grade(text, gold)
    return (None, True) if verdict is Verdict.CORRECT else (verdict.value, False)


def math_verify_says(row: TraceRow, grader: Grader) -> bool:
    """Say whether Math-Verify alone calls the answer right; of a response without an answer, False, as by dynts.

    The answer is what follows the thinking. A verdict that the row holds is not computed again; rows of earlier
    versions hold none.

    Args:
        row: the trace.
        grader: compares answers.
    """
    if row.math_verify is not None:
        return row.math_verify
    if row.reason is not None and row.reason not in set(Verdict):
        return False
    answer = answer_of(row.response)
    return grader.grade(row.response if answer is None else answer, row.answer, MATH_VERIFY) is Verdict.CORRECT
