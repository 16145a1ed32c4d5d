"""The process that grades for a `Grader`: one JSON line in, [answer text, gold, grader]; one out, true, false or null.

It ends by itself when its parent is gone, and when one answer takes more processor time than its limit.
"""

import json
import os
import signal
import sys


def main() -> None:
    """Grade until the input ends. Argument: the limit for one answer, in seconds of processor time."""
    limit = float(sys.argv[1])
    # the parent decides what an interrupt from the keyboard means
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever is printed must not look like a verdict

    from dynts.grading.compare import is_correct, is_correct_by_math_verify, same_answer

    same_answer("x", "y")  # imports Math-Verify now, not at the cost of the first answer
    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        answer_text, gold, by = json.loads(line)
        # the default action of this signal ends the process, even inside a single long operation of the interpreter
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            verdict = (is_correct_by_math_verify if by == "math-verify" else is_correct)(answer_text, gold)
        except Exception:  # one odd answer must not end the grading of thousands
            verdict = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), file=verdicts, flush=True)


if __name__ == "__main__":
    main()
