"""Several folders in one training, and metrics by group."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from command_line import run
from dynts.errors import DyntsError
from dynts.predictor import ImportancePredictor
from dynts.traces.traces import read_traces
from dynts.training.dataset import load_examples, split_by_question
from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from dynts.training.train import TrainConfig, train_predictor
from made_up import make_up
from tiny_traces import build_model, make_row

CONFIG = TrainConfig(epochs=1, batch_traces=8)


@pytest.fixture
def folders(tmp_path: Path) -> list[ShardFolder]:
    """30 traces each, of which 10 questions are in both."""
    return [make_up(tmp_path / name, 30, first=first) for name, first in (("short", 0), ("long", 20))]


def test_folders_are_mixed_and_split_by_question_across_them(folders: list[ShardFolder]) -> None:
    examples = load_examples(folders, "answer", "rank", group_by="folder")
    assert [example.group for example in examples] == ["short"] * 30 + ["long"] * 30
    train, held_out = split_by_question(examples, 0.2, 0)
    assert len({example.question for example in held_out}) == 10
    assert not {example.question for example in train} & {example.question for example in held_out}
    shared = [example.group for example in held_out if 20 <= int(example.question) < 30]
    assert sorted(shared) == ["long"] * (len(shared) // 2) + ["short"] * (len(shared) // 2)
    result = train_predictor(folders, CONFIG, group_by="folder")
    assert result.train_traces + result.held_out_traces == 60
    training = result.predictor.config.training
    assert training["traces_file"] == "none, none"
    assert training["groups"]["column"] == "folder"
    assert training["groups"]["metrics"] == result.groups


def test_groups_add_up_to_the_total(folders: list[ShardFolder]) -> None:
    result = train_predictor(folders, CONFIG, group_by="parity")
    assert set(result.groups) == set(result.group_traces) == {"odd", "even"}
    assert sum(result.group_traces.values()) == result.held_out_traces
    for name, metrics in result.metrics.items():
        for metric, value in metrics.items():
            parts = [result.groups[group][name][metric] * count for group, count in result.group_traces.items()]
            assert sum(parts) / result.held_out_traces == pytest.approx(value)
    assert result.groups["odd"]["predictor"] != result.groups["even"]["predictor"]


def test_grouping_changes_no_figure_of_the_whole(folders: list[ShardFolder]) -> None:
    plain, grouped = (train_predictor(folders, CONFIG, group_by=column) for column in (None, "parity"))
    assert plain.metrics == grouped.metrics
    assert (plain.groups, plain.group_traces) == ({}, {})


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "shards", tmp_path / "b" / "shards"]
    examples = load_examples([make_up(path, 3) for path in paths], "answer", "rank", group_by="folder")
    assert {example.group for example in examples} == {str(path) for path in paths}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fingerprint": {"hidden_size": 8, "model_type": "qwen2"}}, r"differ .*model_type: llama and qwen2\)"),
        (
            {"fingerprint": {"hidden_size": 8, "model_type": "llama", "embedding_sample": [[0.1, -0.1]]}},
            r"differ \(embedding_sample\): mix only folders that were labelled with the same model",
        ),
        ({"think_markers": {"start": [1], "end": [2]}}, r"differ \(think_markers: None and"),
        ({"labels": ["future"]}, "holds the labels future, not 'answer'"),
    ],
)
def test_folders_that_do_not_go_together_are_refused(tmp_path: Path, settings: dict[str, object], problem: str) -> None:
    llama = {"hidden_size": 8, "model_type": "llama", "embedding_sample": [[0.1, 0.2]]}
    first = make_up(tmp_path / "first", 3, fingerprint=llama)
    other = make_up(tmp_path / "other", 3, **{"fingerprint": llama, **settings})
    with pytest.raises(DyntsError, match=problem):
        load_examples([first, other], "answer", "rank")


def test_another_dtype_of_the_same_model_goes_together(tmp_path: Path) -> None:
    samples = ([[0.1001, -0.25]], [[0.1003, -0.2502]])
    folders = [
        make_up(tmp_path / str(index), 3, first=index, fingerprint={"hidden_size": 8, "embedding_sample": sample})
        for index, sample in enumerate(samples)
    ]
    assert len(load_examples(folders, "answer", "rank")) == 6


def test_the_future_label_of_other_windows_is_refused(tmp_path: Path) -> None:
    folders = [
        make_up(tmp_path / str(window), 3, labels=["answer", "future"], future_window=window) for window in (4, 8)
    ]
    assert len(load_examples(folders, "answer", "rank")) == 6
    with pytest.raises(DyntsError, match="future_window: 4 and 8"):
        load_examples(folders, "future", "rank")


def test_a_folder_given_twice_and_an_unknown_column_are_refused(folders: list[ShardFolder]) -> None:
    with pytest.raises(DyntsError, match="given twice"):
        load_examples([*folders, folders[0]], "answer", "rank")
    with pytest.raises(DyntsError, match=r"'subject' to group by, there are .*correct, folder, id, parity, question"):
        load_examples(folders, "answer", "rank", group_by="subject")


def test_columns_of_a_trace_are_read_as_text(write_lines: Callable[..., Path]) -> None:
    more = {"subject": "algebra", "level": 3, "hard": True, "tags": ["a"], "prompt": "long " * 100}
    path = write_lines([{**make_row(0), **more}, make_row(1)])
    first, second = read_traces(path)
    assert first.columns == {"subject": "algebra", "level": "3", "hard": "true"}
    assert second.columns == {}


def test_columns_travel_from_the_traces_to_the_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = []
    for name, first in (("one", 0), ("two", 12)):
        rows = [{**make_row(index), "level": 1 + index % 2} for index in range(first, first + 12)]
        # a trace may not say; and no column can replace what dynts writes itself
        rows[0] = {**make_row(first), "question_key": "x", "correct": "perhaps"}
        shards.append(tmp_path / name)
        label_traces(model, tokenizer, write_lines(rows, f"{name}.jsonl"), shards[-1], labels=["answer"])
    assert ShardFolder.open(shards[0]).read(0).info["correct"] == "true"
    out = tmp_path / "predictor"
    options = ("--out", out, "--held-out", 0.5, "--epochs", 1, "--group-by", "level", "--device", "cpu")
    code, printed, _ = run(monkeypatch, capsys, "train", "--shards", shards[0], "--shards", shards[1], *options)
    assert code == 0
    assert "by level" in printed
    groups = ImportancePredictor.from_pretrained(out).config.training["groups"]
    assert set(groups["metrics"]) >= {"1", "2"}
    assert sum(groups["traces"].values()) == 12
    assert json.loads((out / "config.json").read_text())["training"]["traces_file"] == "one.jsonl, two.jsonl"


def test_folders_of_different_models_are_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path
) -> None:
    models = (model, build_model("llama", seed=1))
    folders = [
        label_traces(which, tokenizer, traces, tmp_path / str(index), labels=["answer"])
        for index, which in enumerate(models)
    ]
    with pytest.raises(DyntsError, match=r"differ \(embedding_sample\)"):
        train_predictor(folders, CONFIG)
