"""What a page shows: a trace's tokens, their importance, and what each method keeps."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.decode.compress import Predictor
from dynts.methods import check_threshold
from dynts.methods.dynts import predicted_scores
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS
from dynts.predictor.model import ImportancePredictor
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace
from dynts.training.labels import label_trace
from dynts.view.forced_decode import KeptTokens, forced_decode


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Texts that, put together, are the decoded sequence, special tokens included.

    A character may take several tokens of a byte-level tokenizer. The token that completes it has the text, and those
    before it have none, so that nobody sees half a character. What is still incomplete at the end goes to the last
    token.

    Args:
        tokenizer: a fast tokenizer.
        ids: token ids [N].

    Returns:
        A text for each token [N].
    """
    stream, backend = DecodeStream(skip_special_tokens=False), cast(Any, tokenizer).backend_tokenizer
    texts = [stream.step(backend, token) or "" for token in ids]
    complete = max((index + 1 for index, text in enumerate(texts) if text), default=0)
    if complete < len(texts):
        texts[-1] = str(tokenizer.decode(list(ids[complete:]), clean_up_tokenization_spaces=False))
    return texts


Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many steps are."""


@dataclass(frozen=True, slots=True)
class ShownImportance:
    """One way to say how important the thinking tokens are.

    Attributes:
        kind: a true label, or predicted scores.
        name: of the label; for scores, what tells the predictor from others.
        values: float32 [L], NaN where a label says nothing.
    """

    kind: Literal["true", "predicted"]
    name: str
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class TraceView:
    """All that a page shows.

    Attributes:
        trace: the trace.
        model: name of the model.
        tokens: ids and spans.
        texts: of the tokens [N].
        config: the budget.
        importances: labels first, then scores.
        kept: of each method.
    """

    trace: Trace
    model: str
    tokens: TokenizedTrace
    texts: list[str]
    config: CompressionConfig
    importances: list[ShownImportance]
    kept: list[KeptTokens]


def view_trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    trace: Trace,
    tokens: TokenizedTrace,
    methods: Sequence[Arm[Predictor]],
    config: CompressionConfig,
    predictors: Mapping[str, ImportancePredictor],
    chat: ChatOptions = DEFAULT_CHAT,
    *,
    name: str = "",
    progress: Progress = lambda what, done, total: None,
) -> TraceView:
    """Label a trace, score it, and decode it with each method.

    Labels and scores come from one teacher-forced pass with the full cache. `dynts` scores tokens as it decodes, from
    the hidden states under its own budget, which differ a little.

    Args:
        model: a model with "sdpa" or "eager" attention.
        tokenizer: its tokenizer.
        trace: the trace.
        tokens: its tokens.
        methods: what to compare.
        config: the budget.
        predictors: by name; the first one with a future window sets that of the future label.
        chat: how the model is talked to.
        name: of the model.
        progress: see `Progress`.

    Raises:
        DyntsError: a predictor of another model, or a budget too small for the question.
    """
    config.check_question(tokens.question_end)
    for arm in methods:
        check_threshold(arm.method, config)
    for predictor in predictors.values():
        predictor.check_model(model)
    windows = [predictor.config.future_window for predictor in predictors.values()]
    future_window = next((window for window in windows if window is not None), FUTURE_WINDOW)
    progress("labels", 0, 1)
    labelled = label_trace(model, tokens, SHARED_LABELS, future_window=future_window)
    progress("labels", 1, 1)
    importances = [ShownImportance("true", label, values.cpu()) for label, values in labelled.labels.items()]
    importances += [
        ShownImportance("predicted", label, _score(predictor, labelled.hidden))
        for label, predictor in predictors.items()
    ]
    kept = [
        forced_decode(
            model,
            tokenizer,
            tokens,
            viewed,
            config,
            functools.partial(progress, viewed.name(question=False)),
            chat.format(tokenizer),
        )
        for viewed in methods
    ]
    return TraceView(trace, name, tokens, token_texts(tokenizer, tokens.ids), config, importances, kept)


@torch.no_grad()
def _score(predictor: ImportancePredictor, hidden: torch.Tensor) -> torch.Tensor:
    return predicted_scores(predictor, hidden).cpu()
