"""Write held-out problems of the embedded model's task to a file that `dynts eval --benchmark` takes.

python benchmarks/embedded_problems.py problems.jsonl --count 200
"""

import argparse
import json
from pathlib import Path

from dynts.store.files import write_text_whole
from dynts.tiny.task import HELD_OUT, make_problem


def main() -> None:
    """Parse arguments, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    problems = {seed: make_problem(seed) for seed in HELD_OUT[: arguments.count]}
    lines = [
        json.dumps({"id": str(seed), "question": problem.question, "answer": problem.answer})
        for seed, problem in problems.items()
    ]
    write_text_whole(arguments.file, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
