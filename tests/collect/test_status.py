"""What a job shows, and what can be read of it from outside."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from adder import Adder, run
from dynts.collect.status import read_status
from dynts.errors import DyntsError
from dynts.store.progress import Display, Tally


def test_a_folder_that_nobody_works_on(sums: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(sums, tmp_path / "out", Adder(8))
    status = read_status(tmp_path / "out")
    assert (status.tally.done, status.tally.total, status.tally.correct) == (8, 30, 5)
    assert status.describe().splitlines() == [
        f"{tmp_path / 'out'} (collect): 8 of 30 traces; 5 correct; dropped: wrong_answer 2, unfinished 1",
        "  nobody works on it: run its command again",
    ]
    run(sums, tmp_path / "out", Adder())
    assert read_status(tmp_path / "out").describe().endswith("\n  complete")
    [shard] = [path for path in (tmp_path / "out").glob("traces-*.parquet") if "-00000-00001-" in path.name]
    shard.write_bytes(b"")
    assert read_status(tmp_path / "out").tally.done == 8, "damaged traces do not count"
    run(sums, tmp_path / "out", Adder())
    assert f"set aside as damaged: {shard.name}.damaged" in read_status(tmp_path / "out").describe()


def test_a_running_job_is_seen_from_outside(sums: Path, tmp_path: Path) -> None:
    seen = []

    class Watched(Adder):
        def solve(self, request):  # type: ignore[no-untyped-def]
            seen.append(read_status(tmp_path / "out"))
            return Adder.solve(request)

    run(sums, tmp_path / "out", Watched(), limit=10)
    assert [status.tally.done for status in seen] == list(range(10))
    assert {len(status.workers) for status in seen} == {1}
    assert "running since" in seen[5].describe()
    assert "dynts" in seen[5].figures()["workers"][0]["command"]
    assert read_status(tmp_path / "out").workers == []


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DyntsError, match="give a folder written by `dynts collect`, `dynts eval`, `dynts import` or `dynts label`"
    ):
        read_status(tmp_path)
    (tmp_path / "manifest.json").write_text('{"settings": {}}')
    with pytest.raises(DyntsError, match="neither a folder of traces nor of shards"):
        read_status(tmp_path)


def test_counts_in_words() -> None:
    tally = Tally(total=100, done=30, correct=20, started_with=10, tokens=5000, started=1000.0)
    tally.dropped["unfinished"] = 4
    assert tally.describe(now=1010.0) == "20 correct; dropped: unfinished 4; 500 tokens/s; 0:00:35 left"
    assert Tally(total=5).describe() == ""


def test_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, screen = iter([0.0, 1.0, 31.0, 31.0, 32.0]), io.StringIO()
    monkeypatch.setattr("dynts.store.progress.time.monotonic", lambda: next(clock))
    with Display("collecting", Console(file=screen)) as display:
        for done in (1, 2, 3):
            display.update(Tally(total=3, done=done, correct=done))
    assert screen.getvalue() == "collecting: 2 of 3 traces; 2 correct; 0:00:00 left\n"


def test_traces_of_earlier_runs_do_not_count_for_the_speed() -> None:
    screen = io.StringIO()
    with Display("labelling", Console(file=screen, force_terminal=True, width=120)) as display:
        display.count(60, 100)
        assert "left" not in screen.getvalue()
        display._counted.started -= 10
        display.count(80, 100)
    assert "80/100" in screen.getvalue()
    assert "0:00:10 left" in screen.getvalue()


def test_a_live_display_on_a_terminal() -> None:
    screen = io.StringIO()
    with Display("collecting", Console(file=screen, force_terminal=True, width=120)) as display:
        display.update(Tally(total=3, done=2, correct=1))
        display.say("a [bracketed] remark")
    assert "2/3" in screen.getvalue()
    assert "1 correct" in screen.getvalue()
    assert "a [bracketed] remark" in screen.getvalue()
