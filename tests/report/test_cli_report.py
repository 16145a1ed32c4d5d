"""The command, without results of real runs."""

from pathlib import Path

import pytest

import dynts.evaluate.results as results
from command_line import run
from made_arms import make_arm

Patch, Captured = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def test_writes_a_report(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    found = {"one": [make_arm("full", None, 0.9)], "two": [make_arm("rkv", None, 0.5)]}
    for name in found:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(results, "read_results", lambda folder, grader="dynts": found[folder.name], raising=False)
    out = tmp_path / "report"
    code, text, _ = run(monkeypatch, capsys, "report", tmp_path / "one", tmp_path / "two", "--out", out)
    assert code == 0
    assert text == f"page: {out / 'report.html'}\n"
    assert (out / "report.html").exists()
    assert (out / "report.md").exists()
    assert len((out / "arms.csv").read_text().splitlines()) == 3
    assert not (out / "samples.csv").exists()
    code, _, _ = run(monkeypatch, capsys, "report", tmp_path / "one", "--out", out, "--samples")
    assert code == 0
    assert len((out / "samples.csv").read_text().splitlines()) == 41


def test_says_what_has_no_samples(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    arms = [make_arm("full", None, 0.9), make_arm("rkv", None, 0.5, questions=0)]
    monkeypatch.setattr(results, "read_results", lambda folder, grader="dynts": arms, raising=False)
    code, _, err = run(monkeypatch, capsys, "report", tmp_path, "--out", tmp_path / "report")
    assert code == 0
    assert "rkv (results) has no samples yet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--out", "report"], "missing is not a folder: give folders written by `dynts eval`"),
        (["results", "--out", "report.pdf"], "a report is a folder"),
        (["results", "--out", "results"], "results exists and is no report"),
        (["results", "--out", "no/such/report"], "the folder of no/such/report does not exist"),
        (["results"], "Missing option '--out'"),
        (["--out", "report"], "Missing argument"),
    ],
)
def test_bad_input(arguments: list[str], message: str, monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/precious").touch()
    monkeypatch.setattr(
        results, "read_results", lambda folder, grader="dynts": [make_arm("full", None, 0.9)], raising=False
    )
    code, _, err = run(monkeypatch, capsys, "report", *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert not Path("report").exists()
