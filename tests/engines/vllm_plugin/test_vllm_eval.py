"""`dynts eval --engine vllm` beside `--engine transformers`, on the embedded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_engines import needs_vllm

from dynts.evaluate.results import read_results
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import budget_for, schedule
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder
from dynts.traces.record import TraceRow

pytestmark = [needs_vllm, pytest.mark.slow]

MEASURED = (
    "finished",
    "prompt_tokens",
    "generated_tokens",
    "compactions",
    "peak_tokens",
    "mean_tokens",
    "cache_lengths",
)


def evaluate(problems: Path, out: Path, *engine: object) -> dict[str, dict[str, TraceRow]]:
    """The rows of each method."""
    config = schedule(budget_for(0.4))
    words = ["eval", "--model", WEIGHTS, "--benchmark", problems, "--method", "full,dynts", "--out", out, *engine]
    words += ["--predictor", WEIGHTS / "answer", "--budget", config.budget, "--local-window", config.local_window]
    words += ["--retention-ratio", config.retention_ratio, "--temperature", 0, "--samples", 1]
    words += ["--max-new-tokens", 1000, "--dtype", "float32"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    subprocess.run([sys.executable, "-m", "dynts", *map(str, words)], env=environment, check=True)
    return {
        arm.method.split(",")[0]: {row.id: row for row in TraceFolder.open(arm.folder).rows()}
        for arm in read_results(out)
    }


def test_texts_and_measurements_equal_those_of_transformers(tmp_path: Path) -> None:
    file = tmp_path / "chains.jsonl"
    problems = {str(number): make_problem(number) for number in HELD_OUT[:6]}
    rows = [{"id": name, "question": item.question, "answer": item.answer} for name, item in problems.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = json.dumps({"max_model_len": 2048, "enforce_eager": True})
    vllm = evaluate(file, tmp_path / "vllm", "--engine", "vllm", "--batch", 4, "--engine-args", arguments)
    transformers = evaluate(file, tmp_path / "transformers")
    assert vllm.keys() == transformers.keys() == {"full", "dynts"}
    for method, expected in transformers.items():
        assert {name: row.response for name, row in vllm[method].items()} == {
            name: row.response for name, row in expected.items()
        }
        for name, row in vllm[method].items():
            assert [getattr(row, field) for field in MEASURED] == [getattr(expected[name], field) for field in MEASURED]
        assert len({row.batch for row in vllm[method].values()}) == 1
    assert all(row.compactions for row in vllm["dynts"].values())
