"""Tensor parallelism by transformers: the processes keep the same tokens, those that one process keeps."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from decoding import TOLERANCE
from parallel_heads import METHODS, run
from tiny import tiny_model

SCRIPT = Path(__file__).parents[1] / "helpers" / "parallel_heads.py"


def test_two_processes_keep_what_one_keeps(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launch, str(SCRIPT), str(tmp_path / "model"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert ended.returncode == 0, ended.stderr
    alone = run(tiny_model("llama"))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for method, one, *both in zip(METHODS, alone, *ranks, strict=True):
        assert len(one["kept"]) >= 3
        for mine in both:
            assert torch.equal(mine["tokens"], one["tokens"]), method
            torch.testing.assert_close(mine["logits"], one["logits"], atol=TOLERANCE, rtol=0)
        for whole, *parts in zip(one["kept"], *(mine["kept"] for mine in both), strict=True):
            if method.granularity == "native":
                # each process keeps the tokens of its own heads
                assert torch.equal(torch.cat(parts, dim=2), whole), method
            else:
                assert all(torch.equal(part, whole) for part in parts), method
