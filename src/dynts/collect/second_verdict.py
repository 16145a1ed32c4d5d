"""What Math-Verify alone says of a trace, beside the verdict of dynts."""

from dynts.collect.row import TraceRow
from dynts.grading.grader import MATH_VERIFY, Grader, Verdict
from dynts.markers import END


def math_verify_says(row: TraceRow, grader: Grader) -> bool:
    """Whether Math-Verify alone calls the answer right; of a response without an answer, False, as by dynts.

    The answer is what follows the thinking. A verdict that the row holds is not computed again; rows of earlier versions
    hold none.
    """
    if row.math_verify is not None:
        return row.math_verify
    if row.reason is not None and row.reason not in set(Verdict):
        return False
    return grader.grade(row.response.rpartition(END)[2], row.answer, MATH_VERIFY) is Verdict.CORRECT
