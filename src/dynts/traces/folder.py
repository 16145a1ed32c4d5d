"""A folder of traces: a manifest, Parquet shards, and the journals of what is not in a shard yet.

A worker appends each finished trace to a journal `journal-<worker>-<number>.jsonl` and now and then rolls the journal
up into the shard of the same worker and number. A kill between the two steps leaves both, and the shard counts. So a
trace is in the folder once, whatever happens, and nothing has to be known but what the folder holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dynts.errors import DyntsError
from dynts.store.files import writing_to
from dynts.store.journal import Journal, read_journal
from dynts.store.manifest import check_settings, read_manifest, settle
from dynts.traces.parquet import Outcome, is_whole, read_outcomes, read_shard, write_shard
from dynts.traces.record import TraceRow, from_columns

MADE_BY = "dynts collect`, `dynts eval` or `dynts import"
_ROLL_ROWS = 1000
_ROLL_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class TraceFolder:
    """A folder of traces; `create` or `open` it."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def create(cls, path: str | Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Self:
        """Start a folder, or continue one with the same settings; see `dynts.store.manifest.settle`.

        Args:
            path: the folder.
            settings: what determines the traces; must match on resuming.
            facts: what the manifest records besides: counts.

        Raises:
            DyntsError: the folder holds other things, or other settings; the differing fields are named.
        """
        return cls(Path(path), settle(path, settings, MADE_BY, {"kind": "traces", **facts}))

    @staticmethod
    def check(path: Path, settings: Mapping[str, Any]) -> None:
        """Refuse other settings than the folder's, as `create` would, and write nothing.

        Args:
            path: the folder, which need not exist.
            settings: what determines the traces.

        Raises:
            DyntsError: names the differing fields.
        """
        check_settings(path, settings, MADE_BY)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing folder.

        Raises:
            DyntsError: no manifest, a damaged one, or one of another kind of folder.
        """
        path = Path(path)
        manifest = read_manifest(path, MADE_BY)
        if manifest.get("kind") != "traces":
            raise DyntsError(f"{path} is no folder of traces: give a folder written by `{MADE_BY}`")
        return cls(path, manifest)

    def rows(self) -> Iterator[TraceRow]:
        """Yield all traces, a few in memory at a time, always in the same order.

        Raises:
            DyntsError: a shard is damaged.
        """
        for _, file in sorted(self._files().items()):
            yield from self._read(file)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield id, judgement and length of every trace but those of damaged shards."""
        for _, file in sorted(self._files().items()):
            if file.suffix == ".jsonl":
                for row in self._read(file):
                    yield Outcome(row.id, row.correct, row.reason, row.generated_tokens)
            elif is_whole(file):
                yield from read_outcomes(file)

    def _read(self, file: Path) -> Iterator[TraceRow]:
        if file.suffix == ".jsonl":
            try:
                yield from read_journal(file, from_columns)
                return
            except FileNotFoundError:  # rolled up since the folder was listed
                shard = self._files().get(stem_of(file))
                if shard is None:  # it was empty
                    return
                file = shard
        if not is_whole(file):
            raise DyntsError(
                f"{file} is damaged (its checksum is not the one in its name): run the command that made "
                f"{self.path} again, it sets damaged shards aside and makes their traces anew"
            )
        yield from read_shard(file)

    def mend(self, warn: Callable[[str], object], mine: Callable[[int], bool] = lambda worker: True) -> None:
        """Clear up after a run that was killed, or after a bad disk. Only for who holds the folder.

        Damaged shards are renamed, so that their traces count as missing; journals that were left become shards.

        Args:
            warn: told of each damaged shard.
            mine: whether the files of a worker are this process's to mend.
        """
        for path in sorted(self.path.glob("traces-*.parquet")):
            if mine(_worker(stem_of(path))) and not is_whole(path):
                aside = path.rename(path.with_name(f"{path.name}.damaged"))
                warn(f"{path} is damaged: set aside as {aside.name}; its traces will be made again")
        for journal in sorted(self.path.glob("journal-*.jsonl")):
            if mine(_worker(stem_of(journal))):
                _roll(journal, stem_of(journal))

    def writer(self, worker: int = 0) -> "TraceWriter":
        """Append to the folder as this worker. Only for who holds the folder."""
        return TraceWriter(self.path, worker)

    def _files(self) -> dict[str, Path]:
        """Return the file that counts for each worker and number: the shard if there is one, else the journal."""
        files: dict[str, Path] = {}
        # journals first: one that is rolled up meanwhile is then still found as a shard
        for pattern in ("journal-*.jsonl", "traces-*.parquet"):
            files |= {stem_of(path): path for path in self.path.glob(pattern)}
        return files


class TraceWriter:
    """Appends traces to a folder, as one of its workers."""

    def __init__(self, folder: Path, worker: int) -> None:
        self.folder = folder
        self.worker = worker
        # numbers are never used twice, not even those of shards that were set aside
        used = [stem_of(path) for pattern in ("journal-*", "traces-*") for path in folder.glob(pattern)]
        self._number = 1 + max((int(stem.split("-")[1]) for stem in used if _worker(stem) == worker), default=-1)
        self._journal = self._next_journal()

    def append(self, row: TraceRow) -> None:
        """Write one trace; it is on the disk when this returns.

        Raises:
            DyntsError: the disk is full or not writable.
        """
        self._journal.append(row.columns())
        if self._journal.rows >= _ROLL_ROWS or self._journal.size >= _ROLL_BYTES:
            self.close()

    def close(self) -> None:
        """Roll up what is in the journal.

        Raises:
            DyntsError: the disk is full or not writable; the journal stays.
        """
        journal, stem = self._journal, self._stem
        if journal.rows:
            self._number += 1
            self._journal = self._next_journal()
            with writing_to(self.folder):
                journal.close()
                _roll(journal.path, stem)

    def _next_journal(self) -> Journal:
        return Journal(self.folder / f"journal-{self._stem}.jsonl")

    @property
    def _stem(self) -> str:
        return f"{self.worker:05d}-{self._number:05d}"


def stem_of(path: Path) -> str:
    """Worker and number in the name of a journal or shard, such as 00000-00003."""
    return "-".join(path.name.split(".")[0].split("-")[1:3])


def _worker(stem: str) -> int:
    return int(stem.split("-")[0])


def _roll(journal: Path, stem: str) -> None:
    """Turn a journal into a shard, unless a whole one is there already."""
    done = [path for path in journal.parent.glob(f"traces-{stem}-*.parquet") if is_whole(path)]
    rows = [] if done else list(read_journal(journal, from_columns))
    if rows:
        write_shard(rows, journal.parent, stem)
    journal.unlink()
