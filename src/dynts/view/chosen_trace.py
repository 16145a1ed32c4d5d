"""Choose the trace to look at."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from dynts.errors import DyntsError
from dynts.markers import END
from dynts.prompts import DEFAULT_CHAT, ChatOptions
from dynts.training.tokens import TokenizedTrace, split_response, tokenize_trace
from dynts.training.traces import Trace

_SHOWN = 5


def choose_trace(traces: Iterable[Trace], identity: str | None = None, question: str | None = None) -> Trace:
    """The trace of an id, or the one whose question contains a text (white space aside), or the first.

    Args:
        traces: where to look.
        identity: its id.
        question: its question, or a part of it.

    Raises:
        DyntsError: both are given, no trace fits, or several do; some ids are named.
    """
    if identity is not None and question is not None:
        raise DyntsError("give either --id or --question")
    others: list[str] = []
    found: list[Trace] = []
    wanted = _words(question or "")
    for trace in traces:
        if question is None and (identity is None or trace.id == identity):
            return trace
        if question is not None and wanted in _words(trace.question):
            found.append(trace)
        else:
            others.append(trace.id)
    if len(found) == 1:
        return found[0]
    if found:
        raise DyntsError(
            f"{len(found)} questions contain {question!r}: give more of the text, or one of the ids with --id: "
            f"{_some([trace.id for trace in found])}"
        )
    missing = f"no trace has the id {identity!r}" if question is None else f"no question contains {question!r}"
    raise DyntsError(f"{missing}; ids here: {_some(others)}")


def tokenize_chosen(
    tokenizer: PreTrainedTokenizerBase, trace: Trace, chat: ChatOptions = DEFAULT_CHAT
) -> TokenizedTrace:
    """The tokens of a trace that has thinking and an answer.

    Raises:
        DyntsError: it has not, or the tokenizer cannot split it.
    """
    if END not in trace.response:
        raise DyntsError(
            f"trace {trace.id!r} has no closing think marker {END}, so no token of it is an answer: choose a finished trace"
        )
    tokens = tokenize_trace(tokenizer, trace, chat)
    if not split_response(trace.response)[0].strip() or tokens.thinking_end <= tokens.question_end:
        raise DyntsError(f"trace {trace.id!r} has no thinking before {END}: choose another")
    if len(tokens.ids) <= tokens.answer_start:
        raise DyntsError(f"trace {trace.id!r} has no answer after {END}: choose another")
    return tokens


def _words(text: str) -> str:
    return " ".join(text.split())


def _some(ids: list[str]) -> str:
    more = f", ... ({len(ids)} in all)" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more
