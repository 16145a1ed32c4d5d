"""`dynts eval` of the embedded model over an engine that brings kernels of its own, beside that over transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dynts.evaluate.results import read_results
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import budget_for, schedule
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder
from dynts.traces.record import TraceRow

CONFIG = schedule(budget_for(0.4))
MEASURED = (
    "finished",
    "prompt_tokens",
    "generated_tokens",
    "compactions",
    "peak_tokens",
    "mean_tokens",
    "cache_lengths",
)


def evaluate(folder: Path, engine: str, *words: object, environment: Mapping[str, str]) -> dict[str, list[TraceRow]]:
    """The rows of each method, in a new folder below."""
    problems, out = folder / "chains.jsonl", folder / engine
    if not problems.exists():
        made = [(number, make_problem(number)) for number in HELD_OUT[:4]]
        rows = [{"id": str(number), "question": item.question, "answer": item.answer} for number, item in made]
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["eval", "--model", WEIGHTS, "--benchmark", problems, "--out", out, "--engine", engine, *words]
    given += ["--predictor", WEIGHTS / "answer", "--budget", CONFIG.budget, "--local-window", CONFIG.local_window]
    given += ["--retention-ratio", CONFIG.retention_ratio, "--temperature", 0, "--samples", 1]
    given += ["--max-new-tokens", 600, "--dtype", "float32"]
    command = [sys.executable, "-m", "dynts", *map(str, given)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    arms = {arm.method: list(TraceFolder.open(arm.folder).rows()) for arm in read_results(out)}
    return {method: sorted(rows, key=lambda row: row.id) for method, rows in arms.items()}


def check_equal_to_transformers(
    folder: Path, engine: str, arguments: Mapping[str, object], environment: Mapping[str, str], *words: object
) -> set[str]:
    """The methods that were evaluated, with the same texts and measurements over both engines."""
    own = ("--batch", 4, "--engine-args", json.dumps(arguments))
    found = evaluate(folder, engine, *words, *own, environment=environment)
    expected = evaluate(folder, "transformers", *words, environment={})
    assert found.keys() == expected.keys()
    for method, rows in expected.items():
        assert [row.response for row in found[method]] == [row.response for row in rows]
        for name in MEASURED:
            assert [getattr(row, name) for row in found[method]] == [getattr(row, name) for row in rows], name
        assert len({row.batch for row in found[method]}) == 1
        assert method == "full" or all(row.compactions for row in rows)
    return set(found)
