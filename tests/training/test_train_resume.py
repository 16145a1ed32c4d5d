"""An interrupted training continues to the same weights, bit by bit."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import run
from dynts.errors import DyntsError
from dynts.predictor import ImportancePredictor
from dynts.training import checkpoint as checkpoints
from dynts.training import train as training
from dynts.training.checkpoint import Checkpoint
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, compare_transforms, train_predictor, work_folder
from made_up import make_up

CONFIG = TrainConfig(epochs=3, batch_traces=5, micro_traces=2)
STEPS = 15  # 24 of 30 traces train: 5 steps an epoch, the last one of 4 traces


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return make_up(tmp_path / "shards", traces=30, ragged=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "work" / "checkpoint.pt", minutes=0)


def same(ours: ImportancePredictor, theirs: ImportancePredictor) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def interrupt(at: int, seen: list[int]) -> Callable[[int, int, float], None]:
    def progress(done: int, steps: int, loss: float) -> None:
        assert steps == STEPS
        seen.append(done)
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.quick
def test_interrupted_anywhere_it_ends_with_the_same_weights(folder: ShardFolder, checkpoint: Checkpoint) -> None:
    reports: list[tuple[int, float]] = []
    whole = train_predictor(folder, CONFIG, report=lambda epoch, loss, metrics: reports.append((epoch, loss)))
    seen: list[int] = []
    again: list[tuple[int, float]] = []
    # in the first epoch, at its last step, at the first of the next, in the middle of the last, and at the very end
    for at in (2, 5, 6, 13, STEPS):
        torch.manual_seed(at)
        with pytest.raises(KeyboardInterrupt):
            train_predictor(
                folder,
                CONFIG,
                progress=interrupt(at, seen),
                report=lambda epoch, loss, metrics: again.append((epoch, loss)),
                checkpoint=checkpoint,
            )
    resumed = train_predictor(
        folder, CONFIG, report=lambda epoch, loss, metrics: again.append((epoch, loss)), checkpoint=checkpoint
    )
    assert same(resumed.predictor, whole.predictor)
    assert resumed.metrics == whole.metrics
    # an epoch that was interrupted after its checkpoint and before the next is reported twice, none is lost
    assert sorted(set(again)) == reports
    # a step that was interrupted before its checkpoint is done again, and no other
    assert seen == [1, 2, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 13, 14, 15]


def test_a_finished_training_is_not_trained_again(folder: ShardFolder, checkpoint: Checkpoint) -> None:
    first = train_predictor(folder, CONFIG, checkpoint=replace(checkpoint, minutes=60))
    steps: list[int] = []
    second = train_predictor(folder, CONFIG, checkpoint=checkpoint, progress=lambda done, *rest: steps.append(done))
    assert steps == []
    assert same(first.predictor, second.predictor)


def test_between_epochs_checkpoints_are_written_as_often_as_asked(
    folder: ShardFolder, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(
        Checkpoint, "save", lambda self, settings, state: saved.append((state["epoch"], state["batches"]))
    )
    train_predictor(folder, CONFIG, checkpoint=replace(checkpoint, minutes=60))
    assert saved == [(1, 5), (2, 5), (3, 5)]
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr("dynts.training.fit.time.monotonic", lambda: next(clock))
    saved.clear()
    train_predictor(folder, CONFIG, checkpoint=replace(checkpoint, minutes=2.5))
    # the clock goes on by a minute whenever it is asked: once a step, and once when a checkpoint was written
    assert [batches for _, batches in saved] == [3, 5, 3, 5, 3, 5]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"epochs": 4}, "epochs: 3 there, 4 now"),
        ({"learning_rate": 1e-3}, "learning_rate: 0.0005 there, 0.001 now"),
        ({"batch_traces": 4}, "batch_traces: 5 there, 4 now"),
        ({"transform": "linear"}, "transform: rank there, linear now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"bf16": True}, "bf16: False there, True now"),
        ({"held_out": 0.5}, "held_out: 0.2 there, 0.5 now.*train_traces: 24 there, 15 now"),
    ],
)
def test_other_settings_are_refused_by_name(
    folder: ShardFolder, checkpoint: Checkpoint, changed: dict[str, object], problem: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_predictor(folder, CONFIG, progress=interrupt(2, []), checkpoint=checkpoint)
    with pytest.raises(DyntsError, match=problem):
        train_predictor(folder, replace(CONFIG, **changed), checkpoint=checkpoint)


def test_other_traces_are_refused_and_other_memory_is_not(
    folder: ShardFolder, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_predictor(folder, CONFIG, progress=interrupt(2, []), checkpoint=checkpoint)
    other = make_up(tmp_path / "others", traces=30, ragged=True, traces_sha256="others")
    with pytest.raises(DyntsError, match="shards: "):
        train_predictor(other, CONFIG, checkpoint=checkpoint)
    train_predictor(folder, replace(CONFIG, micro_traces=1), checkpoint=checkpoint)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(folder: ShardFolder, checkpoint: Checkpoint, content: bytes) -> None:
    checkpoint.path.parent.mkdir()
    checkpoint.path.write_bytes(content)
    with pytest.raises(DyntsError, match=r"checkpoint\.pt is damaged .*: remove it to start over"):
        train_predictor(folder, CONFIG, checkpoint=checkpoint)


def test_a_full_disk_leaves_the_last_checkpoint(
    folder: ShardFolder, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_predictor(folder, CONFIG, progress=interrupt(4, []), checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()

    def full_disk(found: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full_disk)
    with pytest.raises(DyntsError, match=r"No space left.*run the same command again"):
        train_predictor(folder, CONFIG, checkpoint=checkpoint)
    assert checkpoint.path.read_bytes() == before
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_comparison_of_transforms_continues(folder: ShardFolder, checkpoint: Checkpoint) -> None:
    whole = compare_transforms(folder, CONFIG)
    steps: list[int] = []

    def progress(done: int, *rest: object) -> None:
        steps.append(done)
        if len(steps) in (3, 20):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare_transforms(folder, CONFIG, progress=progress, checkpoint=checkpoint)
    assert compare_transforms(folder, CONFIG, progress=progress, checkpoint=checkpoint) == whole
    # 19 of 24 traces in 4 steps an epoch, 3 epochs, 4 transforms; two steps were done twice
    assert len(steps) == 4 * 3 * 4 + 2


def test_the_command_says_how_to_continue_and_cleans_up(
    folder: ShardFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictor"
    command = ("train", "--shards", folder.path, "--out", out, "--epochs", 2, "--device", "cpu", "--compare-transforms")

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", interrupted)
        code, _, error = run(patch, capsys, *command)
    assert code == 130
    assert re.search(
        r"run the same command again to continue from the last checkpoint, kept in \S+\.predictor\.partial", error
    )
    assert work_folder(out).is_dir()
    assert not out.exists()
    assert run(monkeypatch, capsys, *command)[0] == 0
    assert ImportancePredictor.from_pretrained(out).config.hidden_size == 8
    assert not work_folder(out).exists()


def test_negative_minutes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match="minutes between checkpoints must not be negative, got -1"):
        Checkpoint(tmp_path / "checkpoint.pt", minutes=-1)
