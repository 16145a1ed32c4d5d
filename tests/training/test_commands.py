"""The commands, end to end, on a model saved to disk."""

import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner

import dynts
from dynts.cli import app
from dynts.methods import TriAttention
from dynts.predictor import ImportancePredictor


def run(*arguments: object, code: int = 0) -> str:
    """Standard output, or standard error where the command is to fail."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


@pytest.mark.quick
def test_from_traces_to_a_predictor(saved_model: Path, model: PreTrainedModel, traces: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "predictor"
    label_command = ("label", "--model", saved_model, "--traces", traces, "--out", shards, "--future-window", 4)
    assert "12 of 12 traces labelled" in run(*label_command)
    assert "12 of 12 traces labelled" in run(*label_command)
    train_command = ("train", "--shards", shards, "--out", out, "--epochs", 2, "--label", "future")
    printed = run(*train_command, "--compare-transforms")
    for row in (
        "token identity",
        "position only",
        "random",
        "rank",
        "power",
        "log",
        "linear",
        "10 training and 2 held-out",
    ):
        assert row in printed
    predictor = ImportancePredictor.from_pretrained(out)
    predictor.check_model(model)
    assert predictor.config.label == "future"
    assert predictor.config.base_model == str(saved_model)
    assert "already holds a predictor" in run(*train_command, code=2)
    run(*train_command, "--overwrite")


@pytest.mark.quick
def test_from_traces_to_statistics_of_queries(
    saved_model: Path, model: PreTrainedModel, traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "queries.safetensors"
    assert f"of 3 traces read: {out}" in run(
        "calibrate", "--model", saved_model, "--traces", traces, "--out", out, "--count", 3
    )
    with dynts.compress(model, TriAttention(calibration=out), dynts.CompressionConfig(20, 5, 0.4)) as session:
        model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=30)
    assert session.stats[0].peak_tokens == 20


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--labels", "answer,past"), "unknown label 'past'"),
        (("--store-dtype", "float7"), "'float7' is not a floating point dtype"),
        (("--tokens-per-trace", 0), "tokens_per_trace must be at least 1"),
        (("--limit", 0), "limit must be at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    saved_model: Path, traces: Path, tmp_path: Path, options: tuple[object, ...], problem: str
) -> None:
    command = ("label", "--model", saved_model, "--traces", traces, "--out", tmp_path / "shards")
    assert re.search(problem, run(*command, *options, code=2))
    assert not (tmp_path / "shards").exists()


def test_a_limit_labels_the_first_traces(saved_model: Path, traces: Path, tmp_path: Path) -> None:
    run("label", "--model", saved_model, "--traces", traces, "--out", tmp_path / "shards", "--limit", 3)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 3
