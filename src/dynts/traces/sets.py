"""Several sets of traces as one: JSON Lines files, and folders written by `dynts collect` and `dynts import`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dynts.errors import DyntsError
from dynts.store.files import file_sha256
from dynts.traces.folder import TraceFolder
from dynts.traces.traces import Trace, TraceIds, iter_traces

SET_COLUMN = "traces"
"""The column that says which set a trace is of, where there are several."""


@dataclass(frozen=True)
class TraceSets:
    """Traces of several sets, one set after another; ids of several sets are told apart by the set's name.

    Args:
        paths: files and folders.

    Raises:
        DyntsError: there is none, or one is given twice.
    """

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.paths:
            raise DyntsError("no traces given")
        if len({path.resolve() for path in self.paths}) < len(self.paths):
            raise DyntsError(f"a set of traces is given twice: {', '.join(map(str, self.paths))}")

    def __iter__(self) -> Iterator[Trace]:
        """Yield the traces, a few in memory at a time, always in the same order.

        Raises:
            DyntsError: a file or folder cannot be read.
        """
        names = self.names
        for path, name in zip(self.paths, names, strict=True):
            for trace in _read(path):
                if len(names) == 1:
                    yield trace
                else:
                    columns = {**trace.columns, SET_COLUMN: name}
                    yield replace(trace, id=f"{name}/{trace.id}", columns=columns)

    @property
    def names(self) -> list[str]:
        """Return the sets' names: file names, with more of the path where those are equal."""
        whole = [path.resolve().parts for path in self.paths]
        for parts in range(1, 1 + max(map(len, whole))):
            names = ["/".join(path[-parts:]) for path in whole]
            if len(set(names)) == len(names):
                break
        return names

    @cached_property
    def sha256(self) -> str:
        """Return a hash of all traces, whatever files they are kept in; each is read, and so known to be well-formed.

        Raises:
            DyntsError: a file or folder cannot be read, or has no traces.
        """
        hashes = [_sha256(path) for path in self.paths]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def as_sets(traces: str | Path | Sequence[str | Path]) -> TraceSets:
    """Return one path or several as trace sets."""
    return TraceSets((Path(traces),) if isinstance(traces, str | Path) else tuple(map(Path, traces)))


def _read(path: Path) -> Iterator[Trace]:
    if not path.is_dir():
        yield from iter_traces(path)
        return
    found = False
    for row in TraceFolder.open(path).rows():
        found = True
        columns = {**row.extra, "problem_id": row.problem_id}
        ids = None
        if row.prompt_ids is not None and row.generated_ids is not None:
            ids = TraceIds(row.prompt_ids, row.generated_ids)
        yield Trace(row.id, row.question, row.response, row.answer, columns, ids)
    if not found:
        raise DyntsError(f"{path} holds no traces yet: run the command that fills it")


def _sha256(path: Path) -> str:
    if not path.is_dir():
        for _ in iter_traces(path):
            pass
        return file_sha256(path)
    digest = hashlib.sha256()
    for trace in _read(path):
        row: list[object] = [trace.id, trace.question, trace.response, trace.answer, trace.columns]
        row += trace.ids or ()
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
