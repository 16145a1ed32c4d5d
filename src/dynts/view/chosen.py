"""The trace, the methods and the predictors to look at, from their names."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dynts.cache.method import Granularity
from dynts.chat.markers import END
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.chat.thinking import closes_thinking, split_response
from dynts.decode.arm import Arm, make_arms
from dynts.errors import DyntsError
from dynts.methods import resolve_method
from dynts.predictor.model import ImportancePredictor
from dynts.traces.tokens import TokenizedTrace, tokenize_trace
from dynts.traces.traces import Trace

_SHOWN = 5


def choose_trace(traces: Iterable[Trace], identity: str | None = None, question: str | None = None) -> Trace:
    """Find the trace of an id, or the one whose question contains a text (white space aside), or the first.

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
    """Return the tokens of a trace that has thinking and an answer.

    Args:
        tokenizer: of the model.
        trace: the trace.
        chat: how the model is talked to.

    Raises:
        DyntsError: it has not, or the tokenizer cannot split it.
    """
    if not closes_thinking(trace.response):
        raise DyntsError(
            f"trace {trace.id!r} has no closing think marker {END}, so no token of it is an answer: choose a finished "
            "trace"
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


def load_predictors(sources: Sequence[str]) -> dict[str, ImportancePredictor]:
    """Predictors by the label that they were trained on; by their source where two have the same.

    Raises:
        DyntsError: one is given twice, is missing, damaged, or not a predictor.
    """
    if len(set(sources)) < len(sources):
        raise DyntsError(f"a predictor is given twice: {', '.join(sources)}")
    loaded = {source: ImportancePredictor.from_pretrained(source) for source in sources}
    labels = Counter(predictor.config.label for predictor in loaded.values())
    return {
        predictor.config.label if labels[predictor.config.label] == 1 else source: predictor
        for source, predictor in loaded.items()
    }


def choose_methods(
    names: Sequence[str],
    predictors: Mapping[str, ImportancePredictor],
    *,
    native: bool = False,
    protect_question: bool = False,
) -> list[Arm[ImportancePredictor]]:
    """Return an arm of each method; one that needs a predictor comes once for each.

    Args:
        names: of methods.
        predictors: by name.
        native: those that can choose per layer and KV head come a second time, doing that.
        protect_question: keep the question where a method would not by itself.

    Raises:
        DyntsError: an unknown method, one given twice, or one that needs a predictor where there is none.
    """
    if len(set(names)) < len(names):
        raise DyntsError(f"a method is given twice: {', '.join(names)}")
    for name in names:
        if resolve_method(name).needs_predictor and not predictors:
            raise DyntsError(
                f"method {name!r} needs --predictor: train one with `dynts label` and `dynts train`, or choose methods "
                "that need none, such as --method question-window,rkv"
            )
    configs = {label: predictor.config for label, predictor in predictors.items()}
    granularities: list[Granularity] = ["shared", "native"] if native else ["shared"]
    arms = make_arms(names, granularities, configs, protect_question=protect_question)
    return [arm.loaded(predictors, arm.predictor if len(predictors) > 1 else None) for arm in arms]
