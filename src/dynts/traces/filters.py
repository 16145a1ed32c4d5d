"""Which traces are fit for training (arXiv 2601.18383, section 4.1)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dynts.chat.markers import END, START
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.thinking import split_response
from dynts.config import MAX_TOKENS
from dynts.errors import check_count
from dynts.grading.grader import Grader, Verdict
from dynts.traces.tokens import TokenizedTrace, tokenize_trace
from dynts.traces.traces import Trace, question_key

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
    chat: ChatOptions = DEFAULT_CHAT,
) -> Iterator[Selected | str]:
    """Judge the traces.

    To train on are those that are finished, with one pair of think markers, right, short enough, and the first such one
    of their question.

    Args:
        traces: the candidates.
        tokenizer: the tokenizer of the model that will label them, with a chat template.
        max_tokens: the longest trace, question and answer included.
        keep_incorrect: keep answers too that are wrong, ungradable or too much for the grader.
        chat: how the model is talked to.

    Yields:
        For each trace in turn the trace, tokenized, or the first of `REASONS` to drop it.

    Raises:
        DyntsError: `max_tokens` is not positive.
    """
    check_count("max_tokens", max_tokens, least=1)
    questions: set[str] = set()
    with Grader() as grader:
        for trace in traces:
            chosen = _check(trace, tokenizer, grader, max_tokens, keep_incorrect, chat)
            key = question_key(trace.question)
            if not isinstance(chosen, str):
                chosen = "duplicate_question" if key in questions else chosen
                questions.add(key)
            yield chosen


def judge(response: str, gold: str, grader: Grader) -> tuple[str | None, bool]:
    """Judge a response by its text alone.

    Args:
        response: of the model.
        gold: the gold answer.
        grader: compares answers.

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


def _check(
    trace: Trace,
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
    max_tokens: int,
    keep_incorrect: bool,
    chat: ChatOptions,
) -> Selected | str:
    """Return the selected trace, or the reason to drop it."""
    reason, correct = judge(trace.response, trace.answer, grader)
    if reason is not None and not (keep_incorrect and reason in INCORRECT):
        return reason
    tokens = tokenize_trace(tokenizer, trace, chat)
    if len(tokens.ids) > max_tokens:
        return "too_long"
    if tokens.thinking_end <= tokens.question_end:
        return "no_thinking"
    if len(tokens.ids) <= tokens.answer_start:
        return "no_answer"
    return Selected(trace, tokens, correct)
