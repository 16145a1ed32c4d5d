"""The leaderboard: what a file of standings holds, and the page made from it."""

from pathlib import Path

import pytest

from command_line import run
from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.report.build import group_arms
from dynts.report.leaderboard import Standing, read_leaderboard, standings_of, update_leaderboard
from made_arms import PROMPT, make_arm

CONFIG = CompressionConfig(480, 100, 0.4)


def standing(method: str, value: float, compression: float = 4.0, figure: str = "Pass@1") -> Standing:
    return Standing("model", "gsm8k, greedy", figure, method, compression, value, value - 0.01, value + 0.01, 40)


def test_arms_become_standings() -> None:
    full, rkv = make_arm("full", None, 0.9), make_arm("rkv", CONFIG, 0.5)
    found = {each.method: each for each in standings_of(group_arms([full, rkv]))}
    length = sum(PROMPT + sample.generated_tokens for sample in full.samples) / len(full.samples)
    assert found["rkv"].compression == pytest.approx(length / 480)
    assert found["full"].compression == 1
    right = sum(sample.correct for sample in rkv.samples) / len(rkv.samples)
    assert found["rkv"].value == pytest.approx(right)
    assert found["rkv"].low < right < found["rkv"].high


def test_the_full_cache_is_needed() -> None:
    with pytest.raises(DyntsError, match="run the same `dynts eval` with --method full too"):
        standings_of(group_arms([make_arm("rkv", CONFIG, 0.5)]))


def test_two_arms_of_one_place_are_refused() -> None:
    other = CompressionConfig(480, 50, 0.4)
    arms = [make_arm("full", None, 0.9), make_arm("rkv", CONFIG, 0.5), make_arm("rkv", other, 0.6, folder="other")]
    with pytest.raises(DyntsError, match=r"one place for rkv at .* in results and other would share"):
        standings_of(group_arms(arms))


def test_what_is_added_twice_has_one_place(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    for _ in range(2):
        update_leaderboard(path, [standing("rkv", 0.5, 10.0496)])
    assert len(read_leaderboard(path)) == 1


def test_a_standing_takes_the_place_of_its_like(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    update_leaderboard(path, [standing("rkv", 0.5), standing("h2o", 0.6), standing("h2o", 0.4, 8.0)])
    update_leaderboard(path, [standing("rkv", 0.7, 4.02)])
    found = {(each.method, each.compression): each.value for each in read_leaderboard(path)}
    assert found == {("h2o", 4.0): 0.6, ("h2o", 8.0): 0.4, ("rkv", 4.02): 0.7}


@pytest.mark.parametrize(("figure", "first"), [("Pass@1", "good"), ("KL of the answer", "bad")])
def test_the_page_shows_the_best_first(figure: str, first: str, tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    values = {"bad": 0.2, "middling": 0.5, "good": 0.8}
    update_leaderboard(path, [standing(name, value, figure=figure) for name, value in values.items()])
    lines = path.with_suffix(".md").read_text().splitlines()
    methods = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:]
    assert methods[0] == first
    assert methods[1] == "middling"


def test_what_is_no_leaderboard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match=r"a leaderboard is a \.csv file"):
        update_leaderboard(tmp_path / "board.md", [])
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DyntsError, match="its first line must be model,work"):
        update_leaderboard(other, [standing("rkv", 0.5)])
    assert other.read_text() == "a,b\n1,2\n"
    board = tmp_path / "board.csv"
    update_leaderboard(board, [standing("rkv", 0.5)])
    text = board.read_text()
    board.write_text("\ufeff" + text, encoding="utf-8")
    assert len(read_leaderboard(board)) == 1
    for wrong, why in (("half", "could not convert"), ("nan", "must be a finite number")):
        board.write_text(text.replace(",0.5,", f",{wrong},"))
        with pytest.raises(DyntsError, match=rf"line 2 of .*{why}"):
            update_leaderboard(board, [])
    board.write_bytes(b"\xff\xfe")
    with pytest.raises(DyntsError, match=r"board\.csv is not a leaderboard"):
        update_leaderboard(board, [])


def test_the_command_adds_arms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arms = [make_arm("full", None, 0.9), make_arm("rkv", CONFIG, 0.5)]
    monkeypatch.setattr("dynts.evaluate.results.read_results", lambda folder, grader="dynts": arms)
    board = tmp_path / "board.csv"
    code, text, _ = run(monkeypatch, capsys, "report", tmp_path, "--out", tmp_path / "report", "--leaderboard", board)
    assert code == 0
    assert text.splitlines()[-2] == str(board.with_suffix(".md"))
    assert {each.method for each in read_leaderboard(board)} == {"full", "rkv"}
    code, _, err = run(
        monkeypatch, capsys, "report", tmp_path, "--out", tmp_path / "other", "--leaderboard", tmp_path / "board.txt"
    )
    assert code == 2
    assert "a leaderboard is a .csv file" in err
    assert not (tmp_path / "other").exists()
