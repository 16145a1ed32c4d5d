"""Several processes train the predictor that one process trains."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.training.dataset import load_examples
from dynts.training.processes import Processes
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, train_predictor
from gradients import check_averaged_gradients
from made_up import make_up

# 19 traces train: 4 steps an epoch, the last one of 1 trace, which leaves one of two processes without any
CONFIG = TrainConfig(epochs=3, batch_traces=6, micro_traces=2, learning_rate=1e-3)
OPTIONS = ["--epochs", "3", "--batch-traces", "6", "--micro-traces", "2", "--learning-rate", "1e-3", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return make_up(tmp_path / "shards", traces=24, ragged=True)


def torchrun(
    processes: int, folder: ShardFolder, out: Path, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    train = ["-m", "dynts", "train", "--shards", str(folder.path), "--out", str(out), *OPTIONS, *more]
    return subprocess.run([*launch, *train], capture_output=True, text=True, timeout=250)


def test_two_processes_train_what_one_does(folder: ShardFolder, tmp_path: Path) -> None:
    alone = train_predictor(folder, CONFIG)
    assert alone.train_traces == 19
    ended = torchrun(2, folder, tmp_path / "predictor", ["--group-by", "parity"])
    assert ended.returncode == 0, ended.stderr
    together = ImportancePredictor.from_pretrained(tmp_path / "predictor")
    # only the order in which gradients are added differs
    for ours, theirs in zip(together.parameters(), alone.predictor.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for name, metrics in together.config.metrics.items():
        assert metrics == pytest.approx(alone.metrics[name], abs=0.02)
    # one process prints
    assert ended.stderr.count("epoch 3/3") == 1
    assert ended.stdout.count("predictor saved in") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictor", "shards"]


@pytest.mark.parametrize("traces", [6, 5, 1])
def test_averaged_gradients_are_those_of_one_process(
    folder: ShardFolder, monkeypatch: pytest.MonkeyPatch, traces: int
) -> None:
    check_averaged_gradients(
        load_examples([folder], "answer", "rank")[:traces], PredictorConfig(hidden_size=8), CONFIG, monkeypatch
    )


def test_shares_are_put_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(7))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]

    def gather(found: list[list[int]], own: list[int]) -> None:
        assert own == shares[0]
        found[:] = shares

    monkeypatch.setattr("dynts.training.processes.distributed.all_gather_object", gather)
    assert Processes(0, 3).gather(shares[0]) == items
