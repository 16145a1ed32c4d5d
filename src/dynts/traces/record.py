"""One collected trace: what a line of a journal and a row of a Parquet shard hold."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A graded trace.

    Args:
        id: unique within the folder.
        problem_id: of the problem that it answers.
        sample: which of the problem's samples, from 0.
        question: what the model was asked, without instruction and chat template.
        response: what it wrote, from just after the opening think marker, closing marker and answer included.
        answer: the gold answer.
        correct: whether thinking was finished and the last boxed answer after it is right.
        reason: why `dynts label` would drop it, one of `dynts.traces.filters.REASONS`; None if it is fit for training.
        finished: whether the model ended its turn by itself; None if unknown.
        prompt_ids: token ids of question, instruction and chat template, as the model read them; None if unknown.
        generated_ids: token ids as the model wrote them, the one that ends its turn included; None if unknown.
        prompt_tokens: of question, instruction and chat template; None if unknown.
        generated_tokens: None if unknown.
        seconds: from when it got a place among those under way to its end, in folders of earlier versions from the
            start of its batch; None if unknown.
        batch: tells runs of an engine apart, None if unknown; so are all of the following.
        run_seconds: from the start of that run to its end; None in folders of earlier versions, whose `seconds` count
            from there.
        compactions: of this sequence.
        peak_tokens: most cached tokens.
        mean_tokens: cached tokens, mean over the decode steps.
        peak_bytes: of keys and values, allocated for each row by its end.
        cache_lengths: (step, cached tokens before, cached tokens after) of each compaction.
        math_verify: whether Math-Verify alone calls the answer right; None in folders of earlier versions.
        extra: further columns, such as the problem's subject.
    """

    id: str
    problem_id: str
    sample: int
    question: str
    response: str
    answer: str
    correct: bool
    reason: str | None = None
    finished: bool | None = None
    prompt_ids: tuple[int, ...] | None = None
    generated_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    seconds: float | None = None
    batch: str | None = None
    run_seconds: float | None = None
    compactions: int | None = None
    peak_tokens: int | None = None
    mean_tokens: float | None = None
    peak_bytes: int | None = None
    cache_lengths: tuple[tuple[int, int, int], ...] | None = None
    math_verify: bool | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """Return all columns in one dictionary, the extra ones among them."""
        row = asdict(self)
        return row | row.pop("extra")


FIELDS = tuple(name.name for name in fields(TraceRow))
"""Names that extra columns cannot have."""


def from_columns(row: dict[str, Any]) -> TraceRow:
    """Return the trace of a dictionary that `TraceRow.columns` made; what it does not know is an extra column."""
    known = {name: row[name] for name in FIELDS if name in row and name != "extra"}
    if known.get("cache_lengths") is not None:
        known["cache_lengths"] = tuple(map(tuple, known["cache_lengths"]))
    for name in ("prompt_ids", "generated_ids"):
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    extra = {name: value for name, value in row.items() if name not in FIELDS and value is not None}
    return TraceRow(**known, extra=extra)
