"""Problems to collect traces for, each with a stable id and a gold answer."""

import hashlib
import json
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from dynts.errors import DyntsError
from dynts.store.cells import cell_text, column_text
from dynts.traces.record import FIELDS
from dynts.traces.source import GOLD, ProblemSource
from dynts.traces.traces import content_id

INSTRUCTION = "Give the letter of the right option as the answer."


def multiple_choice(question: str, right: str, wrong: Sequence[str], identity: str) -> tuple[str, str]:
    """Return the question with its options below, and the letter of the right one.

    Args:
        question: what is asked.
        right: the right option.
        wrong: the others.
        identity: of the question; the order of the options depends on it and their number alone.
    """
    options = [right, *wrong]
    order = sorted(range(len(options)), key=lambda index: hashlib.sha256(f"{identity} {index}".encode()).digest())
    lines = [f"{letter}) {options[index].strip()}" for letter, index in zip(ascii_uppercase, order, strict=False)]
    text = "\n".join([question.strip(), "", *lines, "", INSTRUCTION])
    return text, ascii_uppercase[order.index(0)]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer.

    Args:
        id: unique within the data set, and the same whatever order it is in.
        question: what is asked.
        answer: the gold answer, as text or LaTeX.
        extra: columns that are kept with every trace.
    """

    id: str
    question: str
    answer: str
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a first pass over a data set found.

    Args:
        available: how many problems there are.
        without_gold: rows left out because their answer column holds no gold answer.
        repeated: rows left out because the same problem stood before.
        sha256: of all ids, questions and gold answers.
        chosen: ids of the problems to be solved.
    """

    available: int
    without_gold: int
    repeated: int
    sha256: str
    chosen: frozenset[str]


def read_problems(source: ProblemSource, chosen: frozenset[str] | None = None) -> Iterator[Problem]:
    """Yield the problems of a source, one at a time; rows without a gold answer are left out.

    Args:
        source: where they are.
        chosen: ids to keep; None keeps all.

    Raises:
        DyntsError: the source cannot be read, or a row lacks a column or holds no question.
    """
    seen: set[str] = set()
    for where, row in source.rows():
        problem = _parse(source, where, row)
        if problem is not None and problem.id not in seen and (chosen is None or problem.id in chosen):
            seen.add(problem.id)
            yield problem


def survey(source: ProblemSource, limit: int | None = None, seed: int = 0) -> Survey:
    """Read a source once before a model is loaded: is it sound, and which problems are to be solved?

    Args:
        source: where the problems are.
        limit: solve this many, drawn by `seed`; a higher limit adds to those of a lower one.
        seed: of the draw.

    Raises:
        DyntsError: as `read_problems`; two different problems have the same id; nothing is left.
    """
    if limit is not None and limit < 1:
        raise DyntsError(f"limit must be at least 1, got {limit}")
    digest = hashlib.sha256()
    # a hash of each problem, so that memory does not grow with their length
    ids: dict[str, bytes] = {}
    without_gold = repeated = 0
    for where, row in source.rows():
        problem = _parse(source, where, row)
        if problem is None:
            without_gold += 1
            continue
        content = hashlib.sha256(json.dumps([problem.id, problem.question, problem.answer]).encode()).digest()
        if problem.id not in ids:
            ids[problem.id] = content
            digest.update(content)
        elif ids[problem.id] == content:
            repeated += 1
        else:
            raise DyntsError(
                f"{where}: id {problem.id!r} stands for another problem before: choose another --id-column"
            )
    if not ids:
        raise DyntsError(
            f"{source.dataset} holds no problems with a gold answer ({without_gold} rows without): check "
            f"--answer-column ({source.answer_column}) and --gold ({source.gold})"
        )
    drawn = sorted(ids, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())[:limit]
    return Survey(len(ids), without_gold, repeated, digest.hexdigest(), frozenset(drawn))


def _parse(source: ProblemSource, where: str, row: dict[str, Any]) -> Problem | None:
    """Return the problem of a row; None if its answer column holds no gold answer."""
    wrong_columns = source.wrong_columns or ()
    needed = [source.question_column, source.answer_column, *source.keep_columns, *wrong_columns]
    for column in [*needed, source.id_column] if source.id_column else needed:
        if column not in row:
            raise DyntsError(f"{where}: there is no column {column!r}, only {', '.join(row)}: name the right one")
    for column in source.keep_columns:
        if column in FIELDS:
            raise DyntsError(f"column {column!r} cannot be kept: a trace has a field of that name; rename it")

    def text(column: str) -> str | None:
        return cell_text(row[column], f"{where}: column {column!r}")

    question = row[source.question_column]
    if not isinstance(question, str) or not question.strip():
        got = reprlib.repr(question)
        raise DyntsError(f"{where}: column {source.question_column!r} must be text that is not empty, got {got}")
    answer = GOLD[source.gold](text(source.answer_column) or "")
    if answer is None:
        return None
    id_column = source.id_column or "id"
    identity = (text(id_column) if id_column in row else None) or content_id(question, answer)
    if wrong_columns:
        wrong = [text(column) or "" for column in wrong_columns]
        question, answer = multiple_choice(question, answer, wrong, identity)
    kept = {column: column_text(row[column], f"{where}: column {column!r}") for column in source.keep_columns}
    extra = {column: text for column, text in kept.items() if text is not None}
    return Problem(identity, question, answer, extra)
