"""Rows of data files: JSON Lines, a JSON array, CSV or Parquet, each value as the file holds it."""

import csv
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynts.errors import DyntsError
from dynts.extras import need
from dynts.store.jsonlines import read_json, read_lines, read_objects

if TYPE_CHECKING:
    import pyarrow

Rows = Iterator[tuple[str, dict[str, Any]]]
"""Where a row stands, for messages, and its columns."""

_BATCH = 256
"""Rows of a Parquet file in memory at a time."""


def file_rows(path: Path) -> Rows:
    """Yield the rows of a file.

    Numbers keep their digits, as `Decimal` where they are no whole numbers; cells of CSV are text.

    Raises:
        DyntsError: it does not exist, is damaged, or of another kind.
    """
    if not path.is_file():
        raise DyntsError(f"{path} does not exist: give a {KINDS} file, a folder, or the id of a data set")
    if path.suffix not in _READERS:
        raise DyntsError(f"{path} has an unknown ending: give a {KINDS} file")
    return _READERS[path.suffix](path)


def is_data_file(name: str) -> bool:
    """Say whether a file of this name can be read."""
    return Path(name).suffix in _READERS


def plain_rows(rows: Iterable[dict[str, Any]], schema: "pyarrow.Schema") -> Iterator[dict[str, Any]]:
    """Yield rows of Arrow data, in which numbers of half and single precision have no more digits than they have there.

    Args:
        rows: as Python values: Arrow makes doubles of all floating-point numbers, such as 0.10000000149011612 of 0.1.
        schema: of the data.
    """
    import pyarrow

    short = {
        field.name: field.type.to_pandas_dtype()
        for field in schema
        if pyarrow.types.is_float16(field.type) or pyarrow.types.is_float32(field.type)
    }
    for row in rows:
        yield row | {name: Decimal(str(kind(row[name]))) for name, kind in short.items() if row[name] is not None}


def _json_lines(path: Path) -> Rows:
    for number, row in read_objects(path, Decimal):
        yield f"{path}, line {number}", row


def _json(path: Path) -> Rows:
    """Yield the objects of an array, or of JSON Lines."""
    first = next((text for _, line in read_lines(path) if (text := line.strip())), "")
    if not first.startswith("["):
        yield from _json_lines(path)
        return
    for number, row in enumerate(read_json(path, Decimal), start=1):
        where = f"{path}, item {number}"
        if not isinstance(row, dict):
            raise DyntsError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, row


def _csv(path: Path) -> Rows:
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DyntsError(f"{path}: two columns have the same name: {', '.join(header)}")
        above = reader.line_num
        for cells in reader:
            where = f"{path}, line {above + 1}"
            above = reader.line_num
            if cells and len(cells) != len(header):
                raise DyntsError(
                    f"{where}: {len(cells)} cells under a header of {len(header)}: quote cells with commas"
                )
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DyntsError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _parquet(path: Path) -> Rows:
    need("pyarrow", "collect", f"reading {path}")
    import pyarrow
    import pyarrow.parquet

    number, part = 0, ""
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                part = f", row group {group}"
                for batch in file.iter_batches(_BATCH, row_groups=[group]):
                    for row in plain_rows(batch.to_pylist(), batch.schema):
                        yield f"{path}, row {number}", row
                        number += 1
    # a damaged page without a checksum may still be read, and hold text that is not UTF-8 or dates that do not exist
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DyntsError(f"cannot read {path}{part}: {error}; if it is damaged, download or make it again") from error


_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}

KINDS = f"{', '.join(list(_READERS)[:-1])} or {list(_READERS)[-1]}"
"""The endings of files that can be read, for messages."""
