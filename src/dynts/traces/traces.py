"""Reasoning traces in JSON Lines: one object with `question`, `response`, `answer` and an optional `id` per line."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from dynts.errors import DyntsError
from dynts.store.cells import cell_text
from dynts.store.jsonlines import read_objects

FIELDS = ("question", "response", "answer")
_MAX_COLUMN = 200


class TraceIds(NamedTuple):
    """Token ids of a trace as they were generated: what the model read, and what it wrote."""

    prompt: tuple[int, ...]
    generated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """One solved question.

    Args:
        id: unique within its file.
        question: what the model was asked.
        response: what it wrote, from just after the opening think marker, closing marker and answer included.
        answer: the gold answer, as text or LaTeX.
        columns: the other fields of the line, as text; lists, objects and long texts are left out.
        ids: its token ids, where they are known.
    """

    id: str
    question: str
    response: str
    answer: str
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    ids: TraceIds | None = None


def read_traces(path: str | Path) -> list[Trace]:
    """Read a JSON Lines file of traces; blank lines are skipped.

    A trace without an id gets one made from its content, so that it stays the same when the file is reordered.

    Raises:
        DyntsError: the file is missing, empty or not UTF-8, or a line is malformed; the message names file and line.
    """
    return list(iter_traces(path))


def iter_traces(path: str | Path) -> Iterator[Trace]:
    """Yield the traces of a file, one in memory at a time; see `read_traces`."""
    line_of: dict[str, int] = {}
    for number, row in read_objects(path, Decimal):
        trace = _parse(row, f"{path}, line {number}")
        if trace.id in line_of:
            raise DyntsError(f"{path}, line {number}: id {trace.id!r} was already used in line {line_of[trace.id]}")
        line_of[trace.id] = number
        yield trace
    if not line_of:
        raise DyntsError(f"{path} holds no traces: it needs one JSON object per line with {', '.join(FIELDS)}")


def question_key(question: str) -> str:
    """Hash a question, to the same for questions that differ only in white space."""
    return hashlib.sha256(" ".join(question.split()).encode()).hexdigest()


def content_id(*texts: str) -> str:
    """Make an id from texts, for what has none of its own: the same wherever it stands."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _parse(row: dict[str, Any], where: str) -> Trace:
    values = {}
    for field in FIELDS:
        value = row.get(field)
        if field == "answer":  # often written as a JSON number
            value = cell_text(value, f"{where}: field 'answer'")
        if not isinstance(value, str):
            problem = "is missing" if field not in row else f"must be a string, got {type(value).__name__}"
            raise DyntsError(f"{where}: field {field!r} {problem}")
        if not value.strip():
            raise DyntsError(f"{where}: field {field!r} is empty")
        values[field] = value
    identity = cell_text(row.get("id"), f"{where}: field 'id'") or content_id(*(values[field] for field in FIELDS))
    question, response, answer = (values[field] for field in FIELDS)
    return Trace(identity, question, response, answer, _columns(row, where))


def _columns(row: dict[str, Any], where: str) -> dict[str, str]:
    texts = {
        name: cell_text(row[name], f"{where}: field {name!r}")
        for name in sorted(row.keys() - {"id", *FIELDS})
        if not isinstance(row[name], list | dict)
    }
    return {name: text for name, text in texts.items() if text is not None and len(text) <= _MAX_COLUMN}
