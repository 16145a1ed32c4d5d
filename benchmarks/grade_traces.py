"""Grade a file of reasoning traces, and list those whose answer is not the gold answer.

python benchmarks/grade_traces.py traces.jsonl
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from dynts.chat.markers import END
from dynts.grading.boxed import last_boxed
from dynts.grading.grader import Grader, Verdict
from dynts.traces.traces import read_traces

EXCERPT = 60


def main(
    traces: Annotated[Path, typer.Argument(help="JSON Lines with question, response, answer")],
    processes: Annotated[int, typer.Option(help="answers graded at a time")] = 1,
) -> None:
    """Print how many traces are complete, correct, wrong and ungradable, and each disagreement."""
    everything = read_traces(traces)
    complete = [trace for trace in everything if END in trace.response]
    conclusions = [trace.response.rpartition(END)[2] for trace in complete]
    answers = zip(conclusions, (trace.answer for trace in complete), strict=True)
    with Grader(processes) as grader:
        verdicts = list(grader.grade_all(answers))
    for trace, conclusion, verdict in zip(complete, conclusions, verdicts, strict=True):
        if verdict is not Verdict.CORRECT:
            given = last_boxed(conclusion)
            shown = f"...{conclusion[-EXCERPT:]!r}" if given is None else given
            print(f"{verdict:<13} {trace.id:<16} gold {trace.answer:<8} given {shown}")
    counts = Counter(verdicts)
    print(
        f"{len(everything)} traces, {len(complete)} complete: "
        + ", ".join(f"{counts[kind]} {kind}" for kind in Verdict)
    )


if __name__ == "__main__":
    typer.run(main)
