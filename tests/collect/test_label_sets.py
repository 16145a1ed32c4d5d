"""Labelling folders of traces, several sets at once, and by several processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.markers import ThinkFormat
from dynts.collect.importing import ImportColumns, import_traces
from dynts.errors import DyntsError
from dynts.store.lock import hold
from dynts.store.progress import Display
from dynts.store.torchrun import Rank
from dynts.tiny import load_tiny_model
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.traces.sets import TraceSets, as_sets
from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from recipes.embedded_model.solution import write_response


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_tiny_model()


def lines(start: int, count: int) -> list[dict[str, str]]:
    problems = [make_problem(seed, steps=range(4, 5)) for seed in PREDICTOR[start : start + count]]
    return [
        {
            "id": str(index),
            "question": item.question,
            "response": f"<think> {write_response(item)}",
            "answer": item.answer if index % 4 else "( 99 )",
            "subject": f"s{index % 2}",
        }
        for index, item in enumerate(problems)
    ]


@pytest.fixture
def sets(write_lines: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """A file, and a folder with other problems under the same ids."""
    file, other = write_lines(lines(0, 8), "some.jsonl"), write_lines(lines(8, 8), "other.jsonl")
    with Display("importing") as display:
        import_traces([other], tmp_path / "folder", ImportColumns(keep=("subject",)), ThinkFormat(), display)
    return [file, tmp_path / "folder"]


def infos(folder: ShardFolder) -> dict[str, dict[str, str]]:
    return {folder.read(index).info["id"]: folder.read(index).info for index in folder.indices}


def test_a_folder_of_traces_is_labelled_like_a_file(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sets: list[Path], tmp_path: Path
) -> None:
    from_folder = label_traces(*tiny, sets[1], tmp_path / "a", future_window=75)
    from_file = label_traces(*tiny, tmp_path / "other.jsonl", tmp_path / "b", future_window=75)
    assert from_folder.indices == from_file.indices == [1, 2, 3, 5, 6, 7]
    assert from_folder.manifest["dropped"] == from_file.manifest["dropped"]
    for index in from_file.indices:
        one, other = from_folder.read(index), from_file.read(index)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0, atol=0)
        assert one.info["subject"] == other.info["subject"] == f"s{index % 2}"


def test_several_sets_are_mixed_and_their_ids_stay_apart(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sets: list[Path], tmp_path: Path
) -> None:
    folder = label_traces(*tiny, sets, tmp_path / "out", labels=("answer",))
    assert folder.manifest["traces"] == 16
    assert folder.manifest["traces_file"] == "some.jsonl, folder"
    assert folder.indices == [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15]
    found = infos(folder)
    assert {(info["id"], info["traces"]) for info in found.values()} == {
        (f"{name}/{index}", name) for name in ("some.jsonl", "folder") for index in (1, 2, 3, 5, 6, 7)
    }
    with pytest.raises(DyntsError, match="traces_sha256"):
        label_traces(*tiny, sets[::-1], tmp_path / "out", labels=("answer",))


def test_a_question_that_two_sets_share_is_labelled_once(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sets: list[Path], tmp_path: Path
) -> None:
    folder = label_traces(*tiny, [tmp_path / "other.jsonl", sets[1]], tmp_path / "out", labels=("answer",))
    assert len(folder.indices) == 6
    assert folder.manifest["dropped"]["duplicate_question"] == 6


def test_names_of_sets(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "math.jsonl", tmp_path / "b" / "math.jsonl"]
    assert TraceSets(tuple(paths)).names == ["a/math.jsonl", "b/math.jsonl"]
    with pytest.raises(DyntsError, match="given twice"):
        as_sets([paths[0], paths[0]])
    with pytest.raises(DyntsError, match="no traces given"):
        as_sets([])


def test_the_hash_of_a_folder_is_that_of_its_traces(sets: list[Path]) -> None:
    before = as_sets(sets[1]).sha256
    [shard] = sets[1].glob("traces-*.parquet")
    from dynts.traces.folder import TraceFolder

    rows = list(TraceFolder.open(sets[1]).rows())
    shard.unlink()
    (sets[1] / "journal-00000-00000.jsonl").write_text("".join(json.dumps(row.columns()) + "\n" for row in rows))
    assert as_sets(sets[1]).sha256 == before
    (sets[1] / "journal-00000-00000.jsonl").write_text("")
    with pytest.raises(DyntsError, match="holds no traces yet"):
        _ = as_sets(sets[1]).sha256


def test_ranks_share_the_shards_of_one_folder(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    sets: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = label_traces(*tiny, sets, tmp_path / "whole", labels=("answer",))
    made = []
    for rank in range(2):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        before = len(list((tmp_path / "out").glob("*.safetensors")))
        folder = label_traces(*tiny, sets, tmp_path / "out", labels=("answer",))
        made.append(len(list(folder.path.glob("*.safetensors"))) - before)
    assert sum(made) == 12
    assert min(made) > 0
    assert folder.manifest == whole.manifest
    assert infos(folder) == infos(whole)


def test_a_shard_folder_in_use_is_refused(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], sets: list[Path], tmp_path: Path
) -> None:
    with hold(tmp_path / "out", Rank(0, 1, 0, "other"), "dynts label"), pytest.raises(DyntsError, match="in use by"):
        label_traces(*tiny, sets, tmp_path / "out")
