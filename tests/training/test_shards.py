"""Labelling into shards: complete, resumable, and never half-written."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.errors import DyntsError
from dynts.grading.grader import Verdict
from dynts.traces.filters import Selected, select_traces
from dynts.traces.traces import read_traces
from dynts.training import labeller, shards
from dynts.training.labelling import label_traces
from dynts.training.labels import label_trace
from dynts.training.shards import ShardFolder
from tiny_traces import build_model, make_row


def contents(path: Path) -> dict[str, object]:
    """What every file of the folder says; safetensors does not fix the order of its metadata, so not its bytes."""
    folder = ShardFolder.open(path)
    done = sorted(int(file.stem) for file in path.glob("*.safetensors"))
    assert all(folder.is_whole(index) for index in done)
    shards = {index: folder.read(index).info for index in done}
    return {"manifest": folder.manifest, "files": visible(path), **shards}


def visible(path: Path) -> list[str]:
    """The files of a folder but the locks."""
    return sorted(file.name for file in path.iterdir() if not file.name.startswith("."))


def test_shards_hold_the_labels_of_every_fit_trace(
    shards: ShardFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path
) -> None:
    selected = list(select_traces(read_traces(traces), tokenizer))
    assert shards.indices == list(range(12))
    assert len(selected) == 12
    for index, chosen in enumerate(selected):
        assert isinstance(chosen, Selected)
        shard = shards.read(index)
        expected = label_trace(model, chosen.tokens, future_window=4)
        assert shard.info["id"] == chosen.trace.id
        torch.testing.assert_close(shard.hidden, expected.hidden, rtol=0, atol=0)
        for name, values in expected.labels.items():
            torch.testing.assert_close(shard.labels[name], values, rtol=0, atol=0, equal_nan=True)
        span = slice(chosen.tokens.question_end, chosen.tokens.thinking_end)
        assert tuple(shard.ids.tolist()) == chosen.tokens.ids[span]


def test_an_interrupted_run_continues_to_the_same_end(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    labelled: list[int] = []
    original = labeller.label_trace
    monkeypatch.setattr(labeller, "label_trace", lambda *a, **k: labelled.append(1) or original(*a, **k))
    label_traces(model, tokenizer, traces, tmp_path / "whole")
    labelled.clear()
    with pytest.raises(KeyboardInterrupt):
        label_traces(model, tokenizer, traces, tmp_path / "resumed", progress=interrupt)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "resumed").glob("*.safetensors")}
    assert len(done) == 5
    label_traces(model, tokenizer, traces, tmp_path / "resumed")
    assert len(labelled) == 12, "no trace may be labelled twice or left out"
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "emptied", "deleted"])
def test_a_damaged_shard_is_redone(
    shards: ShardFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, damage: str
) -> None:
    before = contents(shards.path)
    path = shards.file(3)
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "truncated": data[:-8],
                "flipped bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "emptied": b"",
            }[damage]
        )
    assert not shards.is_whole(3)
    label_traces(model, tokenizer, traces, shards.path, future_window=4)
    assert contents(shards.path) == before


def test_other_settings_are_refused_by_name(
    shards: ShardFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path
) -> None:
    before = contents(shards.path)
    with pytest.raises(DyntsError, match="future_window: 4 there, 5 now"):
        label_traces(model, tokenizer, traces, shards.path, future_window=5)
    with pytest.raises(DyntsError, match="fingerprint"):
        label_traces(build_model("llama", seed=1), tokenizer, traces, shards.path, future_window=4)
    with traces.open("a") as stream:
        stream.write(json.dumps(make_row(100)) + "\n")
    with pytest.raises(DyntsError, match="traces_sha256"):
        label_traces(model, tokenizer, traces, shards.path, future_window=4)
    assert contents(shards.path) == before


def test_a_folder_of_other_things_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(DyntsError, match="no folder written by `dynts label`"):
        label_traces(model, tokenizer, traces, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    with pytest.raises(DyntsError, match="no folder written by `dynts label`"):
        label_traces(model, tokenizer, traces, traces)


def test_a_full_disk_leaves_nothing_half_written(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "save_file", full_disk)
    with pytest.raises(DyntsError, match=r"No space left.*run the same command again"):
        label_traces(model, tokenizer, traces, tmp_path / "out")
    assert visible(tmp_path / "out") == ["manifest.json"]
    monkeypatch.undo()
    folder = label_traces(model, tokenizer, traces, tmp_path / "out")
    assert all(folder.is_whole(index) for index in range(12))


def test_a_subset_of_tokens_is_stored_with_whole_labels(
    shards: ShardFolder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    folder = label_traces(
        model, tokenizer, traces, tmp_path / "few", future_window=4, tokens_per_trace=5, store_dtype="bfloat16"
    )
    thin, whole = folder.read(0), shards.read(0)
    assert thin.hidden.shape == (5, 32)
    assert thin.hidden.dtype == torch.bfloat16
    torch.testing.assert_close(thin.hidden, whole.hidden[thin.rows].bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(thin.labels["answer"], whole.labels["answer"], rtol=0, atol=0)
    assert folder.is_whole(0)


def test_a_folder_that_is_continued_keeps_its_choice_of_traces(
    shards: ShardFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    traces: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynts.traces.filters.Grader.grade", lambda *args: Verdict.UNGRADABLE)
    shards.file(3).unlink()
    again = label_traces(model, tokenizer, traces, shards.path, future_window=4)
    assert again.manifest == shards.manifest
    assert [again.read(index).info["id"] for index in again.indices] == [f"trace-{index}" for index in range(12)]


def test_the_manifest_records_what_was_dropped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    traces = write_lines([{**make_row(1), "answer": "1000"}, make_row(0), {**make_row(2), "response": "cut off"}])
    manifest = label_traces(model, tokenizer, traces, tmp_path / "out").manifest
    assert (manifest["traces"], manifest["indices"]) == (3, [1])
    assert manifest["dropped"]["wrong_answer"] == manifest["dropped"]["unfinished"] == 1


def test_nothing_fit_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    traces = write_lines([{**make_row(0), "answer": "1000"}])
    with pytest.raises(DyntsError, match="no trace is fit for training; dropped: wrong_answer 1"):
        label_traces(model, tokenizer, traces, tmp_path / "none")


def test_hidden_states_that_overflow_are_refused(
    tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(DyntsError, match=r"trace-0.*not finite"):
        label_traces(model, tokenizer, traces, tmp_path / "out")


def test_damaged_manifest_and_missing_folder(shards: ShardFolder, tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match=r"no manifest\.json"):
        ShardFolder.open(tmp_path / "absent")
    (shards.path / "manifest.json").write_text('{"settings": ')
    with pytest.raises(DyntsError, match="damaged"):
        ShardFolder.open(shards.path)
    (shards.path / "manifest.json").write_text('{"settings": {}}')
    with pytest.raises(DyntsError, match="not a manifest"):
        ShardFolder.open(shards.path)
