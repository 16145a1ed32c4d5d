"""A Parquet shard of traces: written whole, and named after its checksum, so that damage shows.

`traces-00000-00003-1a2b3c4d.parquet` is the fourth shard of the first worker; its bytes have the CRC-32 1a2b3c4d.
"""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dynts.errors import DyntsError
from dynts.extras import need
from dynts.store.files import sync, sync_folder
from dynts.traces.record import TraceRow, from_columns

if TYPE_CHECKING:
    import pyarrow

_BATCH = 64
"""Rows in memory at a time when reading; a trace of 16k tokens is some 200 kB."""


def write_shard(rows: Iterable[TraceRow], folder: Path, stem: str) -> Path:
    """Write rows as `traces-<stem>-<checksum>.parquet`, all or nothing, through to the disk.

    Args:
        rows: at least one.
        folder: of the shard.
        stem: of its name.

    Raises:
        DyntsError: pyarrow is not installed.
    """
    need("pyarrow", "collect", "the folder of traces")
    import pyarrow
    import pyarrow.parquet

    columns = [row.columns() for row in rows]
    table = pyarrow.Table.from_pylist(columns, schema=_schema(columns))
    partial = folder / f".traces-{stem}.partial"
    try:
        pyarrow.parquet.write_table(table, partial, compression="zstd")
        sync(partial)
        final = folder / f"traces-{stem}-{_checksum(partial)}.parquet"
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(folder)
    return final


def read_shard(path: Path) -> Iterator[TraceRow]:
    """Yield the rows of a shard, a few in memory at a time.

    Raises:
        DyntsError: it is damaged, or pyarrow is not installed.
    """
    need("pyarrow", "collect", f"reading {path}")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield from map(from_columns, batch.to_pylist())
    except (OSError, pyarrow.ArrowException) as error:
        raise DyntsError(
            f"{path} is damaged ({error}): run the command that made {path.parent} again, it sets damaged shards "
            "aside and makes their traces anew"
        ) from error


class Outcome(NamedTuple):
    """What counts about a trace."""

    id: str
    correct: bool
    reason: str | None
    generated_tokens: int | None


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """Yield the outcomes of the traces of a whole shard; the texts are not read."""
    need("pyarrow", "collect", f"reading {path}")
    import pyarrow.parquet

    for row in pyarrow.parquet.read_table(path, columns=list(Outcome._fields)).to_pylist():
        yield Outcome(**row)


def is_whole(path: Path) -> bool:
    """Say whether the file's bytes have the checksum in its name."""
    try:
        return path.stem.rpartition("-")[2] == _checksum(path)
    except OSError:
        return False


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _schema(columns: list[dict[str, object]]) -> "pyarrow.Schema":
    import pyarrow

    kinds = {
        "sample": pyarrow.int64(),
        "correct": pyarrow.bool_(),
        "finished": pyarrow.bool_(),
        "prompt_ids": pyarrow.list_(pyarrow.int32()),
        "generated_ids": pyarrow.list_(pyarrow.int32()),
        "prompt_tokens": pyarrow.int64(),
        "generated_tokens": pyarrow.int64(),
        "seconds": pyarrow.float64(),
        "run_seconds": pyarrow.float64(),
        "compactions": pyarrow.int64(),
        "peak_tokens": pyarrow.int64(),
        "mean_tokens": pyarrow.float64(),
        "peak_bytes": pyarrow.int64(),
        "math_verify": pyarrow.bool_(),
        "cache_lengths": pyarrow.list_(pyarrow.list_(pyarrow.int64())),
    }
    # extra columns may differ from row to row
    names = dict.fromkeys(name for row in columns for name in row)
    return pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
