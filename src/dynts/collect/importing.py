"""Bring in traces that were made elsewhere."""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from dynts.chat.markers import ThinkFormat
from dynts.chat.thinking import normalise
from dynts.collect.collect import count_outcomes, store
from dynts.errors import DyntsError
from dynts.grading.grader import Grader
from dynts.store.cells import cell_text, column_text
from dynts.store.files import file_sha256
from dynts.store.jsonlines import read_objects
from dynts.store.lock import hold
from dynts.store.progress import Display, Tally
from dynts.store.torchrun import this_rank
from dynts.traces.filters import judge
from dynts.traces.folder import MADE_BY, TraceFolder
from dynts.traces.record import FIELDS, TraceRow
from dynts.traces.traces import content_id, question_key
from dynts.traces.verdicts import math_verify_says


@dataclass(frozen=True, slots=True)
class ImportColumns:
    """Which fields of a line hold what.

    Args:
        question: what the model was asked.
        response: what it wrote, thinking included.
        answer: the gold answer.
        keep: fields to keep with the trace.
    """

    question: str = "question"
    response: str = "response"
    answer: str = "answer"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.keep:
            if name in FIELDS:
                raise DyntsError(f"field {name!r} cannot be kept: a trace has a field of that name; rename it")


def import_traces(
    files: Sequence[Path], out: str | Path, columns: ImportColumns, markers: ThinkFormat, display: Display
) -> Tally:
    """Import JSON Lines files into a folder of traces, and grade them. The same call continues an interrupted one.

    Args:
        files: one JSON object a line.
        out: the folder.
        columns: which fields hold what.
        markers: how the model writes its think markers.
        display: shows how far the work is.

    Returns:
        The counts of the folder.

    Raises:
        DyntsError: a file or line is malformed, two different traces have the same id, other settings than the
            folder's.
    """
    rank = this_rank()
    if rank.world > 1:
        raise DyntsError(f"an import is done by one process, not by {rank.world}: run it without torchrun")
    # all lines are looked at before one is graded, so that a mistake in the last does not cost an hour
    contents: dict[str, bytes] = {}
    repeated = 0
    for where, row in _rows(files, columns, markers):
        content = hashlib.sha256(json.dumps([row.question, row.response, row.answer]).encode()).digest()
        if contents.setdefault(row.id, content) != content:
            raise DyntsError(
                f"{where}: id {row.id!r} stands for another trace before: import the files into folders of their own "
                "and give all of them to `dynts label`"
            )
        repeated += 1
    repeated -= len(contents)
    if not contents:
        raise DyntsError(f"no traces in {', '.join(map(str, files))}: each line needs {columns.question}, ...")
    settings = {
        "kind": "import",
        "files": [{"name": path.name, "sha256": file_sha256(path)} for path in files],
        "columns": asdict(columns),
        "markers": asdict(markers),
    }
    facts = {"total": len(contents), "repeated": repeated}
    with hold(Path(out), rank, MADE_BY) as held:
        folder = TraceFolder.create(out, settings, facts)
        folder.mend(display.say)
        tally, done = count_outcomes(folder, contents.keys())
        with Grader() as grader:
            new = _first_of_id(_rows(files, columns, markers), done)
            store((_grade(row, grader) for row in new), folder.writer(), tally, held, display)
    return tally


def _first_of_id(rows: Iterator[tuple[str, TraceRow]], done: set[str]) -> Iterator[TraceRow]:
    for _, row in rows:
        if row.id not in done:
            done.add(row.id)
            yield row


def _grade(row: TraceRow, grader: Grader) -> TraceRow:
    reason, correct = judge(row.response, row.answer, grader)
    row = replace(row, reason=reason, correct=correct)
    return replace(row, math_verify=math_verify_says(row, grader))


def _rows(files: Sequence[Path], columns: ImportColumns, markers: ThinkFormat) -> Iterator[tuple[str, TraceRow]]:
    """Traces that are not graded yet, and where they stand."""
    for path in files:
        for number, row in read_objects(path, Decimal):
            where = f"{path}, line {number}"
            yield where, _parse(row, columns, markers, where)


def _parse(row: dict[str, Any], columns: ImportColumns, markers: ThinkFormat, where: str) -> TraceRow:
    question = _text(row, columns.question, where)
    response = normalise(_text(row, columns.response, where), markers)
    answer = _text(row, columns.answer, where)
    kept = {name: column_text(row.get(name), f"{where}: field {name!r}") for name in columns.keep}
    return TraceRow(
        id=cell_text(row.get("id"), f"{where}: field 'id'") or content_id(question, response, answer),
        problem_id=cell_text(row.get("problem_id"), f"{where}: field 'problem_id'") or question_key(question)[:16],
        sample=0,
        question=question,
        response=response,
        answer=answer,
        correct=False,
        extra={name: text for name, text in kept.items() if text is not None},
    )


def _text(row: dict[str, Any], field: str, where: str) -> str:
    text = cell_text(row.get(field), f"{where}: field {field!r}")
    if text is None or not text.strip():
        got = reprlib.repr(row.get(field))
        problem = "is missing" if field not in row else f"must be text that is not empty, got {got}"
        raise DyntsError(f"{where}: field {field!r} {problem}")
    return text
