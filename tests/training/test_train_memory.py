"""Memory does not grow with the number of traces."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from dynts.training.dataset import load_examples
from made_up import make_up

PROGRAM = """
import resource, sys, torch
from pathlib import Path
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, train_predictor

torch.set_num_threads(1)
for path in sys.argv[1:]:
    train_predictor(ShardFolder.open(path), TrainConfig(epochs=1, batch_traces=8, micro_traces=2))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak memory differs between systems")
def test_the_peak_does_not_grow_with_the_traces(tmp_path: Path) -> None:
    few, many = (make_up(tmp_path / f"{traces}", traces=traces, tokens=512, size=64) for traces in (12, 300))
    data = sum(path.stat().st_size for path in many.path.iterdir())
    program = [sys.executable, "-c", PROGRAM, str(few.path), str(few.path), str(many.path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    _, before, after = (1024 * int(line) for line in ended.stdout.split())
    assert data > 40e6
    print(f"{data=} {before=} {after=}")
    assert after - before < data / 8


def test_a_trace_in_memory_has_no_tokens(tmp_path: Path) -> None:
    folder = make_up(tmp_path / "shards", traces=200, tokens=400)
    load_examples([folder], "answer", "rank")
    tracemalloc.start()
    examples = load_examples([folder], "answer", "rank")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(examples) == 200
    assert held / len(examples) < 500
