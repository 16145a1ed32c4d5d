"""Measure traces one by one into a folder, resumably: a manifest, and a journal with one line a trace.

A trace is done when its line is on the disk. The same command continues after an interruption; under `torchrun` the
processes share the traces, each with a journal of its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.store.journal import Journal, read_journal
from dynts.store.lock import hold
from dynts.store.manifest import settle
from dynts.store.torchrun import this_rank
from dynts.traces.sets import TraceSets
from dynts.traces.tokens import TokenizedTrace, tokenize_trace
from dynts.traces.traces import Trace
from dynts.training.config import LabelOptions
from dynts.training.labelling import select

Row = dict[str, Any]
"""What was measured on one trace, for JSON."""
Measure = Callable[[int, Trace, TokenizedTrace], Row]
"""Called with the trace's place among all traces, the trace and its tokens."""
Progress = Callable[[int, int], None]
"""Called with the number of traces done and their total."""

_PLACE = "place"


def measure_traces(
    out: Path,
    made_by: str,
    settings: Mapping[str, Any],
    sets: TraceSets,
    tokenizer: PreTrainedTokenizerBase,
    options: LabelOptions,
    measure: Measure,
    progress: Progress | None = None,
    chat: ChatOptions = DEFAULT_CHAT,
) -> tuple[list[Row], int]:
    """Measure the fit traces (see `dynts.traces.filters`) that a folder lacks.

    Args:
        out: the folder; made if it does not exist.
        made_by: the command, for messages.
        settings: what determines the rows besides traces and `options`; must match on resuming.
        sets: the traces.
        tokenizer: the model's.
        options: which traces are fit, and how many to take.
        measure: makes the row of a trace.
        progress: called after each trace.
        chat: how the model is talked to.

    Returns:
        The rows that the folder now holds, in the order of the traces, and how many there will be: more only while
        other processes are still at work.

    Raises:
        DyntsError: no trace is fit, the folder holds other things or other settings or is in use, a full disk.
    """
    rank = this_rank()
    settings = {
        "analysis": made_by,
        **settings,
        **options.selection(sets, chat),
    }
    with hold(out, rank, made_by) as held:
        manifest = settle(out, settings, made_by, lambda: select(sets, tokenizer, options, chat))
        wanted: list[int] = manifest["indices"]
        places = [place for place in wanted if rank.owns(str(place))]
        missing = set(places) - _read(out).keys()
        done = started_with = len(places) - len(missing)

        def note(force: bool = False) -> None:
            held.note(force, done=done, total=len(places), started_with=started_with)
            if progress is not None:
                progress(done, len(places))

        note(force=True)
        if missing:
            journal = Journal(out / f"rows-{rank.rank:05d}.jsonl")
            for place, trace in enumerate(sets):
                if place in missing:
                    row = measure(place, trace, tokenize_trace(tokenizer, trace, chat))
                    journal.append({_PLACE: place, "id": trace.id, **row})
                    done += 1
                    note()
            journal.close()
        rows = _read(out)
    return [rows[place] for place in wanted if place in rows], len(wanted)


def _read(folder: Path) -> dict[int, Row]:
    """Rows by the trace's place."""
    journals = sorted(folder.glob("rows-*.jsonl"))
    return dict(pair for path in journals for pair in read_journal(path, lambda row: (row[_PLACE], row)))
