"""The folder of traces: nothing lost, nothing twice, damage found, one writer."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet
import pytest
from filelock import FileLock

from adder import Adder, rows_of, run
from dynts.errors import DyntsError
from dynts.store.journal import Journal
from dynts.store.lock import hold, holders
from dynts.store.torchrun import Rank
from dynts.traces.folder import TraceFolder
from dynts.traces.parquet import read_shard, write_shard
from dynts.traces.record import TraceRow
from dynts.traces.source import ProblemSource


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if not file.name.startswith("."))


def test_every_trace_is_kept_with_all_that_is_known(sums: Path, tmp_path: Path) -> None:
    tally = run(sums, tmp_path / "out", Adder(), samples=2)
    rows = {row.id: row for row in TraceFolder.open(tmp_path / "out").rows()}
    assert len(rows) == tally.done == tally.total == 60
    # of the answers 1 to 30, 10 are divisible by 3 and 6 by 5, 2 by both
    assert tally.correct == sum(row.correct for row in rows.values()) == 2 * (30 - 10 - 6 + 2)
    assert dict(tally.dropped) == {"unfinished": 12, "wrong_answer": 16}
    row = rows["sum-3#1"]
    assert row == TraceRow(
        id="sum-3#1",
        problem_id="sum-3",
        sample=1,
        question="3 + 1 = ?",
        response=row.response,
        answer="4",
        correct=True,
        finished=True,
        prompt_ids=tuple(range(7)),
        generated_ids=tuple(range(11)),
        prompt_tokens=7,
        generated_tokens=11,
        seconds=0.25,
        math_verify=True,
        extra={"level": "0"},
    )
    assert row.response.startswith("\nlet me see ")
    assert row.response != rows["sum-3#0"].response
    assert rows["sum-4#0"].reason == "unfinished"
    assert [name.split("-")[0] for name in files(tmp_path / "out")] == ["manifest.json", "traces"]


def test_measurements_survive_journal_and_shard_and_old_shards_have_none(tmp_path: Path) -> None:
    plain = TraceRow("a", "a", 0, "?", "1", "1", True, seconds=0.5)
    measured = TraceRow(
        *("b", "b", 0, "?", "1", "1", True),
        prompt_ids=(5, 6),
        generated_ids=(7, 151_645),
        seconds=0.5,
        batch="x",
        run_seconds=1.5,
        compactions=2,
        peak_tokens=9,
        mean_tokens=7.25,
        peak_bytes=640,
        cache_lengths=((3, 9, 6), (6, 9, 6)),
    )
    folder = TraceFolder.create(tmp_path, {}, {})
    journal = Journal(tmp_path / "journal-00000-00000.jsonl")
    for row in (plain, measured):
        journal.append(row.columns())
    journal.close()
    assert list(folder.rows()) == [plain, measured]
    folder.mend(print)
    assert list(folder.rows()) == [plain, measured]
    [shard] = tmp_path.glob("traces-*.parquet")
    whole = pyarrow.parquet.read_table(shard)
    assert whole.schema.equals(pyarrow.parquet.read_schema(write_shard([plain], tmp_path, "00000-00001")))
    old = [
        name
        for name in whole.column_names
        if name
        not in ("batch", "run_seconds", "cache_lengths", "mean_tokens", "compactions", "prompt_ids", "generated_ids")
    ]
    pyarrow.parquet.write_table(whole.select(old), tmp_path / "old.parquet")
    assert next(read_shard(tmp_path / "old.parquet")) == plain


def test_a_trace_is_on_disk_before_the_next_one(sums: Path, tmp_path: Path) -> None:
    seen = []

    class Looking(Adder):
        def solve(self, request):  # type: ignore[no-untyped-def]
            [*journals] = (tmp_path / "out").glob("journal-*.jsonl")
            seen.append(sum(len(path.read_bytes().splitlines()) for path in journals))
            return Adder.solve(request)

    run(sums, tmp_path / "out", Looking())
    assert seen == list(range(30))


def test_an_interrupted_run_continues_to_the_same_end(sums: Path, tmp_path: Path) -> None:
    run(sums, tmp_path / "whole", Adder())
    made = []
    for stop_after in (0, 7, 9, None):
        engine = Adder(stop_after)
        if stop_after is None:
            run(sums, tmp_path / "out", engine)
        else:
            with pytest.raises(KeyboardInterrupt):
                run(sums, tmp_path / "out", engine)
        made += engine.made
    assert len(made) == len(set(made)) == 30
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    engine = Adder()
    run(sums, tmp_path / "out", engine)
    assert engine.made == []


def test_higher_limits_and_more_samples_add(sums: Path, tmp_path: Path) -> None:
    for limit, samples, fresh in ((5, 1, 5), (5, 2, 5), (8, 2, 6), (8, 2, 0)):
        engine = Adder()
        tally = run(sums, tmp_path / "out", engine, limit=limit, samples=samples)
        assert len(engine.made) == fresh
        assert tally.done == tally.total == limit * samples
    assert len(rows_of(tmp_path / "out")) == 16


def leave_journal(sums: Path, out: Path, traces: int) -> Path:
    """A folder as kill -9 leaves it: a journal that nobody rolled up."""
    with pytest.raises(KeyboardInterrupt):
        run(sums, out, Adder(traces))
    [shard] = out.glob("traces-*.parquet")
    rows = list(TraceFolder.open(out).rows())
    shard.unlink()
    journal = out / "journal-00000-00000.jsonl"
    journal.write_text("".join(json.dumps(row.columns()) + "\n" for row in rows))
    return journal


@pytest.mark.parametrize(
    "tail", [b'{"id": "sum-8#0", "prob', b"\x00\x00\x00\x00", b'{"id": "sum-8#0"}', b"[1]\n", b"\xff\n"]
)
def test_a_torn_last_line_is_dropped(sums: Path, tmp_path: Path, tail: bytes) -> None:
    run(sums, tmp_path / "whole", Adder())
    journal = leave_journal(sums, tmp_path / "out", 8)
    with journal.open("ab") as stream:
        stream.write(tail)
    assert len(rows_of(tmp_path / "out")) == 8
    engine = Adder()
    run(sums, tmp_path / "out", engine)
    assert len(engine.made) == 22
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    assert not journal.exists()


def test_a_journal_that_outlived_its_shard_counts_once(sums: Path, tmp_path: Path) -> None:
    journal = leave_journal(sums, tmp_path / "out", 8)
    text = journal.read_bytes()
    TraceFolder.open(tmp_path / "out").mend(print)
    journal.write_bytes(text)  # as if the process had been killed before it removed the journal
    assert len(rows_of(tmp_path / "out")) == 8
    run(sums, tmp_path / "out", Adder())
    assert len(rows_of(tmp_path / "out")) == 30
    assert not journal.exists()


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "emptied", "deleted"])
def test_a_damaged_shard_is_set_aside_and_redone(
    sums: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(sums, out, Adder())
    before = rows_of(out)
    [shard] = out.glob("traces-*.parquet")
    data = shard.read_bytes()
    middle = len(data) // 2
    if damage == "deleted":
        shard.unlink()
    else:
        shard.write_bytes(
            {
                "flipped bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "truncated": data[:-9],
                "emptied": b"",
            }[damage]
        )
        with pytest.raises(DyntsError, match=rf"{shard.name} is damaged"):
            rows_of(out)
    run(sums, out, Adder())
    assert rows_of(out) == before
    assert [name for name in files(out) if name.endswith(".damaged")] == (
        [] if damage == "deleted" else [f"{shard.name}.damaged"]
    )
    assert (f"{shard} is damaged: set aside" in capsys.readouterr().err) == (damage != "deleted")


def test_shards_are_rolled_up_on_the_way(sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynts.traces.folder._ROLL_ROWS", 7)
    engine = Adder()
    run(sums, tmp_path / "out", engine)
    assert len(list((tmp_path / "out").glob("traces-00000-*.parquet"))) == 5
    assert len(rows_of(tmp_path / "out")) == 30
    assert list(rows_of(tmp_path / "out")) == engine.made


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, r"sampling\.seed: 0 there, 1 now"), ({"source": "other"}, r"data_sha256.*source\.dataset")],
)
def test_other_settings_are_refused_by_name(sums: Path, tmp_path: Path, change: dict[str, object], named: str) -> None:
    run(sums, tmp_path / "out", Adder(3), limit=3)
    source = sums
    if change.pop("source", None):
        source = tmp_path / "other.jsonl"
        source.write_text(sums.read_text().replace("29 + 1", "29 + 1 + 0"))
    before = rows_of(tmp_path / "out")
    with pytest.raises(DyntsError, match=named):
        run(source, tmp_path / "out", Adder(), limit=3, **change)
    assert rows_of(tmp_path / "out") == before


def test_other_versions_only_warn(sums: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(sums, tmp_path / "out", Adder(), limit=3)
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "0.'))
    run(sums, tmp_path / "out", Adder(), limit=4)
    assert "continuing with other versions (torch 0." in caplog.text
    assert '"torch": "0.' in manifest.read_text()


def test_a_folder_of_other_things_is_refused(sums: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(DyntsError, match="is no folder written by `dynts collect`, `dynts eval` or `dynts import`"):
        run(sums, tmp_path / "mine", Adder())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(DyntsError, match="is no folder"):
        run(sums, sums, Adder())
    with pytest.raises(DyntsError, match=r"no manifest\.json"):
        TraceFolder.open(tmp_path / "mine")


def test_a_folder_in_use_is_refused(sums: Path, tmp_path: Path) -> None:
    class Nosy(Adder):
        def solve(self, request):  # type: ignore[no-untyped-def]
            with pytest.raises(DyntsError, match=rf"in use by process {os.getpid()} on .*\(dynts.*wait until it ends"):
                run(sums, tmp_path / "out", Adder())
            return Adder.solve(request)

    run(sums, tmp_path / "out", Nosy(), limit=1)
    run(sums, tmp_path / "out", Adder(), limit=1)


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from dynts.store.lock import hold\n"
        "from dynts.store.torchrun import Rank\n"
        "with hold(Path(sys.argv[1]), Rank(0, 1, 0, 'other'), 'dynts collect'):\n"
        "    print('held', flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(DyntsError, match=f"in use by process {process.pid}"), hold(tmp_path, alone(), "dynts collect"):
        pass
    process.kill()
    process.wait()
    with hold(tmp_path, alone(), "dynts collect"):
        pass


def alone(job: str = "job") -> Rank:
    return Rank(0, 1, 0, job)


def test_a_process_that_has_its_lock_but_has_not_said_so_yet_is_waited_for(tmp_path: Path) -> None:
    """What torchrun's processes meet when they start at the same moment, here with the note of a killed job lying
    about."""
    note = tmp_path / ".worker-00001.json"
    note.write_text(json.dumps({"rank": 1, "job": "killed", "pid": 1, "host": "h", "command": "c"}))
    with FileLock(tmp_path / ".lock-00001"):
        later = threading.Timer(0.2, lambda: note.write_text(json.dumps({"rank": 1, "job": "this"})))
        later.start()
        with hold(tmp_path, Rank(0, 2, 0, "this"), "dynts collect"):
            assert [other["job"] for other in holders(tmp_path)] == ["this", "this"]
        later.join()


def test_processes_of_one_job_share_a_folder_and_other_jobs_do_not(tmp_path: Path) -> None:
    first, second = (Rank(rank, 2, rank, "job") for rank in range(2))
    with hold(tmp_path, first, "dynts collect"), hold(tmp_path, second, "dynts collect"):
        with pytest.raises(DyntsError, match="in use"), hold(tmp_path, Rank(2, 3, 2, "another"), "dynts collect"):
            pass
        with pytest.raises(DyntsError, match="in use"), hold(tmp_path, alone(), "dynts collect"):
            pass


@pytest.mark.parametrize("worlds", [(3,), (2, 1), (1, 3), (3, 2)])
def test_ranks_share_the_problems(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worlds: tuple[int, ...]
) -> None:
    """The last of the worlds runs to the end, those before are interrupted; whoever comes continues."""
    run(sums, tmp_path / "whole", Adder())
    made = []
    for world in worlds:
        for rank in range(world):
            monkeypatch.setenv("WORLD_SIZE", str(world))
            monkeypatch.setenv("RANK", str(rank))
            engine = Adder(None if world == worlds[-1] else 4)
            if engine.stop_after is None:
                run(sums, tmp_path / "out", engine)
            else:
                with pytest.raises(KeyboardInterrupt):
                    run(sums, tmp_path / "out", engine)
            assert len(engine.made) < 30 or worlds == (1,)
            made += engine.made
    assert len(made) == len(set(made)) == 30
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")


def test_bad_ranks_are_refused(sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(DyntsError, match="RANK is 2 and WORLD_SIZE 1"):
        run(ProblemSource(str(sums)), tmp_path / "out", Adder())
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(DyntsError, match="must be whole numbers"):
        run(ProblemSource(str(sums)), tmp_path / "out", Adder())


def test_a_full_disk_loses_nothing(sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    engine = Adder(6)
    with pytest.raises(KeyboardInterrupt):
        run(sums, tmp_path / "out", engine)
    monkeypatch.setattr("dynts.store.files.os.fsync", full)
    with pytest.raises(DyntsError, match=r"No space left.*run the same command again"):
        run(sums, tmp_path / "out", Adder())
    monkeypatch.undo()
    assert set(rows_of(tmp_path / "out")) >= set(engine.made)
    assert len(engine.made) == 6
    run(sums, tmp_path / "out", Adder())
    assert len(rows_of(tmp_path / "out")) == 30


def test_a_folder_from_before_there_were_multiple_choice_questions_continues(sums: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(sums, tmp_path / "out", Adder(4))
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["source"]["wrong_columns"]
    path.write_text(json.dumps(manifest))
    assert run(sums, tmp_path / "out", Adder()).done == 30
