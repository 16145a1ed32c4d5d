"""Memory does not grow with the number of traces."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

from dynts.training.dataset import load_examples
from made_up import make_up

PROGRAM = """
import sys, psutil, torch
from dynts.training.dataset import Example
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, train_predictor

torch.set_num_threads(1)
held, read = [], Example.read

def measured(example):
    held.append(psutil.Process().memory_info().rss)
    return read(example)

Example.read = measured
for path in sys.argv[1:]:
    held.clear()
    train_predictor(ShardFolder.open(path), TrainConfig(epochs=1, batch_traces=8, micro_traces=2))
    print(max(held))
"""


def test_memory_does_not_grow_with_the_traces(tmp_path: Path) -> None:
    few, many = (make_up(tmp_path / f"{traces}", traces=traces, tokens=512, size=64) for traces in (12, 300))
    data = sum(path.stat().st_size for path in many.path.iterdir())
    program = [sys.executable, "-c", PROGRAM, str(few.path), str(few.path), str(many.path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    # the first training also loads what the library loads once
    _, before, after = map(int, ended.stdout.split())
    print(f"{data=} {before=} {after=}")
    assert data > 40e6
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
