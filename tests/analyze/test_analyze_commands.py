"""`dynts analyze`, end to end."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynts.cli import app
from dynts.predictor.model import ImportancePredictor
from dynts.tiny import WEIGHTS
from dynts.training.shards import ShardFolder
from html_elements import Elements

PNG = b"\x89PNG"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def check(out: Path, name: str, printed: str = "") -> dict[str, object]:
    """The record, of a whole set of files; what the command printed ends with the page."""
    if printed:
        assert printed.splitlines()[-1] == f"page: {out / name}.html"
    elements = Elements((out / f"{name}.html").read_text(encoding="utf-8"))
    assert len(elements.texts("img")) == 1
    assert len(elements.texts("table")) == (out / f"{name}.md").read_text().count("|---|")
    assert (out / f"{name}.png").read_bytes().startswith(PNG)
    assert "</svg>" in (out / f"{name}.svg").read_text()
    page = (out / f"{name}.md").read_text()
    assert f"![{name}]({name}.png)" in page
    assert "|---|" in page
    assert not list(out.glob("*.partial"))
    return json.loads((out / f"{name}.json").read_text())


def test_importance_of_shards_and_of_traces(shards: ShardFolder, traces: Path, tmp_path: Path) -> None:
    printed = run("importance", "--shards", shards.path, "--model", WEIGHTS, "--out", tmp_path / "stored")
    stored = check(tmp_path / "stored", "importance", printed)
    command = ("importance", "--traces", traces, "--model", WEIGHTS, "--out", tmp_path / "anew")
    assert run(*command) == run(*command)
    anew = check(tmp_path / "anew", "importance")
    assert anew["traces"] == stored["traces"] == len(shards.indices)
    assert anew["mass"] == pytest.approx(stored["mass"], abs=1e-5)
    assert anew["parts"] == pytest.approx(stored["parts"], rel=1e-4)
    assert stored["question"] is None
    assert anew["question"]["mass"] + anew["question"]["thinking_mass"] < 1
    shares = [token["share_of_mass"] for token in stored["identities"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert "Question and thinking" in (tmp_path / "anew" / "importance.md").read_text()


def test_pareto(traces: Path, tmp_path: Path) -> None:
    command = ("pareto", "--model", WEIGHTS, "--traces", traces, "--out", tmp_path / "out", "--limit", 2)
    options = ("--shares", "0,20,100", "--max-answer-tokens", 80, "--predictor", WEIGHTS / "answer")
    printed = run(*command, *options)
    rows = (tmp_path / "out" / "rows-00000.jsonl").read_text()
    (tmp_path / "out" / "pareto.md").unlink()
    # memory bounds may change, nothing is measured again
    assert run(*command, *options, "--batch", 2) == printed
    assert [path.read_text() for path in (tmp_path / "out").glob("rows-*.jsonl")] == [rows]
    record = check(tmp_path / "out", "pareto", printed)
    assert record["traces"] == 2
    assert [point["share"] for point in record["curves"]["top, predicted"]] == [0, 0.2, 1]
    result = CliRunner().invoke(app, ["analyze", *map(str, (*command, *options, "--seed", 1))])
    assert result.exit_code == 2


def test_predictor(shards: ShardFolder, trained: ImportancePredictor, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "predictor")
    command = ("predictor", "--predictor", tmp_path / "predictor", "--shards", shards.path, "--out", tmp_path / "out")
    printed = run(*command, "--group-by", "parity")
    assert f"{trained.config.metrics['predictor']['kendall_tau']:.3f}" in printed
    record = check(tmp_path / "out", "predictor", printed)
    assert set(record["groups"]) == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("importance", "--out", "out"), "give either --shards, or --traces"),
        (("importance", "--out", "out", "--traces", "absent.jsonl"), "--traces need --model"),
        (("importance", "--out", "out", "--traces", "absent.jsonl", "--model", WEIGHTS), "absent.jsonl"),
        (("importance", "--out", "out", "--shards", "absent"), "give a folder written by `dynts label`"),
        (("importance", "--out", "file", "--shards", "absent"), "file is a file"),
        (
            ("pareto", "--out", "out", "--model", WEIGHTS, "--traces", "file", "--shares", "50,150"),
            "between 0 and 100%",
        ),
        (("pareto", "--out", "out", "--model", WEIGHTS, "--traces", "file", "--batch", 0), "batch must be"),
        (("pareto", "--out", "out", "--model", WEIGHTS, "--traces", "file"), "file, line 1: not valid JSON"),
        (("predictor", "--out", "out", "--shards", "absent", "--predictor", WEIGHTS / "answer"), "manifest.json"),
        (("predictor", "--out", "out", "--shards", "absent", "--predictor", "./none"), "predictor './none'"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    arguments: tuple[object, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no traces\n")
    result = CliRunner().invoke(app, ["analyze", *map(str, arguments)])
    assert result.exit_code == 2
    assert problem in result.stderr
    assert result.stderr.startswith("dynts: ")
    assert not (tmp_path / "out").exists()
