"""Where to go after the demo: commands that run as they are, with the embedded model."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dynts.config import CompressionConfig
from dynts.demo.compare import Result
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS
from dynts.tiny.task import ChainProblem


def write_traces(problems: Sequence[ChainProblem], result: Result, path: Path) -> None:
    """Write what a method wrote as traces, in the form that every command takes for --traces.

    Args:
        problems: that it solved.
        result: what it wrote.
        path: of the JSON Lines.
    """
    rows = (
        {"id": f"problem-{number}", "question": problem.question, "response": solution.text, "answer": problem.answer}
        for number, (problem, solution) in enumerate(zip(problems, result.solutions, strict=True))
    )
    write_text_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def next_steps(traces: Path, config: CompressionConfig, question: str) -> list[str]:
    """Return commands for the shell, and what each shows.

    Args:
        traces: see `write_traces`.
        config: the budget.
        question: one of the embedded model's task.
    """
    budget = ["--budget", f"{config.budget}", "--local-window", f"{config.local_window}"]
    budget += ["--retention-ratio", f"{config.retention_ratio:.4g}"]
    model = ["--model", _place(WEIGHTS), "--predictor", _place(WEIGHTS / "answer")]
    commands = {
        "one problem as it is solved, evicted tokens dimmed": ["demo", "--ask", "17"],
        "what each method keeps of one trace, as a page": [
            *("view", *model, "--traces", str(traces), "--method", "dynts,window", *budget),
            *("--out", "dynts-view.html"),
        ],
        "the same commands take a model of yours": ["generate", *model, *budget, question],
    }
    return [f"# {what}\n{shlex.join([*_program(), *words])}" for what, words in commands.items()]


def _place(path: Path) -> str:
    """A path from here if it lies below here, else the whole one."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _program() -> list[str]:
    """How the command was called: its name where the shell finds it, else its place."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return [sys.executable, "-m", "dynts"]
    found = shutil.which(called.name)
    if not called.is_file():  # a process that was started otherwise
        return ["dynts"]
    return [called.name] if found is not None and Path(found).samefile(called) else [_place(called.absolute())]
