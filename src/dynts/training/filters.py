"""Which traces are fit for training (arXiv 2601.18383, section 4.1)."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dynts.errors import DyntsError
from dynts.grading.grader import Grader, Verdict
from dynts.markers import END, START
from dynts.training.tokens import TokenizedTrace, split_response, tokenize_trace
from dynts.training.traces import Trace, question_key

MAX_TOKENS = 16_384
REASONS = (
    "unfinished",
    "think_markers",
    "no_thinking",
    "no_answer",
    "ungradable",
    "grader_failed",
    "wrong_answer",
    "too_long",
    "duplicate_question",
)
INCORRECT = ("ungradable", "grader_failed", "wrong_answer")
"""Reasons that say nothing but that the answer is not right."""


@dataclass(frozen=True, slots=True)
class Selected:
    """A trace that passed the filters, tokenized."""

    trace: Trace
    tokens: TokenizedTrace
    correct: bool


def select_traces(
    traces: Iterable[Trace],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = MAX_TOKENS,
    keep_incorrect: bool = False,
) -> tuple[list[Selected], dict[str, int]]:
    """Keep the traces to train on: finished, one pair of think markers, right answer, short enough, one per question.

    Args:
        traces: the candidates; of several good ones for a question the first is kept.
        tokenizer: the tokenizer of the model that will label them, with a chat template.
        max_tokens: the longest trace, question and answer included.
        keep_incorrect: keep answers too that are wrong, ungradable or too much for the grader.

    Returns:
        The kept traces in order, and how many were dropped for each of `REASONS`. A trace counts once, for the first
        reason in that order.

    Raises:
        DyntsError: `max_tokens` is not positive, or no trace is left.
    """
    if max_tokens < 1:
        raise DyntsError(f"max_tokens must be at least 1, got {max_tokens}")
    kept: list[Selected] = []
    dropped: Counter[str] = Counter()
    questions: set[str] = set()
    with Grader() as grader:
        for trace in traces:
            chosen = check_trace(trace, tokenizer, grader, max_tokens, keep_incorrect)
            key = question_key(trace.question)
            if isinstance(chosen, str):
                dropped[chosen] += 1
            elif key in questions:
                dropped["duplicate_question"] += 1
            else:
                questions.add(key)
                kept.append(chosen)
    counts = {reason: dropped[reason] for reason in REASONS}
    if not kept:
        why = ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)
        raise DyntsError(f"no trace is fit for training; dropped: {why or 'there were none'}")
    return kept, counts


def judge(response: str, gold: str, grader: Grader) -> tuple[str | None, bool]:
    """Judge a response by its text alone.

    Returns:
        The first of `REASONS` to drop it, None if there is none; and whether its answer is right.
    """
    opened = response.lstrip().startswith(START)
    if response.count(END) == 0:
        return "unfinished", False
    # the prompt holds the opening marker, so the response may repeat it only at its very start
    if response.count(END) != 1 or response.count(START) != int(opened):
        return "think_markers", False
    thinking, answer = split_response(response)
    if not thinking.strip():
        return "no_thinking", False
    if not answer.strip():
        return "no_answer", False
    verdict = grader.grade(answer, gold)
    return (None, True) if verdict is Verdict.CORRECT else (verdict.value, False)


def check_trace(
    trace: Trace, tokenizer: PreTrainedTokenizerBase, grader: Grader, max_tokens: int, keep_incorrect: bool
) -> Selected | str:
    """The selected trace, or the reason to drop it."""
    reason, correct = judge(trace.response, trace.answer, grader)
    if reason is not None and not (keep_incorrect and reason in INCORRECT):
        return reason
    tokens = tokenize_trace(tokenizer, trace)
    if len(tokens.ids) > max_tokens:
        return "too_long"
    if tokens.thinking_end <= tokens.question_end:
        return "no_thinking"
    if len(tokens.ids) <= tokens.answer_start:
        return "no_answer"
    return Selected(trace, tokens, correct)
