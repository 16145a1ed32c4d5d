"""`dynts eval --engine vllm` beside `--engine transformers`, on the embedded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_engines import needs_vllm

from dynts.evaluate.results import read_results
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import budget_for, schedule
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder
from dynts.traces.record import TraceRow

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

NATIVE = "answer-native"
MEASURED = (
    "finished",
    "prompt_tokens",
    "generated_tokens",
    "compactions",
    "peak_tokens",
    "mean_tokens",
    "cache_lengths",
)


def evaluate(problems: Path, native: Path, out: Path, *engine: object) -> dict[str, dict[str, TraceRow]]:
    """The rows of each method."""
    config = schedule(budget_for(0.4))
    words = ["eval", "--model", WEIGHTS, "--benchmark", problems, "--out", out, *engine]
    words += ["--method", "full,dynts,dynts-all", "--granularity", "shared,native"]
    words += ["--predictor", WEIGHTS / "answer", "--predictor", native]
    words += ["--budget", config.budget, "--local-window", config.local_window]
    words += ["--retention-ratio", config.retention_ratio, "--temperature", 0, "--samples", 1]
    words += ["--max-new-tokens", 600, "--dtype", "float32"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    subprocess.run([sys.executable, "-m", "dynts", *map(str, words)], env=environment, check=True)
    return {arm.method: {row.id: row for row in TraceFolder.open(arm.folder).rows()} for arm in read_results(out)}


def test_texts_and_measurements_equal_those_of_transformers(tmp_path: Path) -> None:
    file = tmp_path / "chains.jsonl"
    problems = {str(number): make_problem(number) for number in HELD_OUT[:4]}
    rows = [{"id": name, "question": item.question, "answer": item.answer} for name, item in problems.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    native = tmp_path / "native"
    known = PredictorConfig(hidden_size=128, layers=4, kv_heads=2, label=NATIVE, all_tokens=True)
    ImportancePredictor(known).save_pretrained(native)
    arguments = json.dumps({"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.2})
    vllm = evaluate(file, native, tmp_path / "vllm", "--engine", "vllm", "--batch", 4, "--engine-args", arguments)
    transformers = evaluate(file, native, tmp_path / "transformers")
    assert vllm.keys() == transformers.keys()
    both = [f"{name}, {NATIVE} label{which}" for name in ("dynts", "dynts-all") for which in ("", ", native")]
    assert vllm.keys() == {"full", "dynts, answer label", *both}
    for method, expected in transformers.items():
        assert {name: row.response for name, row in vllm[method].items()} == {
            name: row.response for name, row in expected.items()
        }
        for name, row in vllm[method].items():
            assert [getattr(row, field) for field in MEASURED] == [getattr(expected[name], field) for field in MEASURED]
        assert len({row.batch for row in vllm[method].values()}) == 1
        assert method == "full" or all(row.compactions for row in expected.values())
