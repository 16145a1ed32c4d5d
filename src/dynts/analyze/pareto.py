"""The Pareto principle of reasoning models: how few thinking tokens an answer needs (arXiv 2601.18383, section 3)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.analyze.measure import Row
from dynts.analyze.retention import answers_by_share
from dynts.chat.written import decode_text
from dynts.errors import DyntsError, check_count
from dynts.evaluate.intervals import wilson
from dynts.grading.grader import Grader, Verdict
from dynts.models import end_tokens
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS, check_window, find_labels, shared_label
from dynts.predictor.model import ImportancePredictor
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace
from dynts.training.labels import label_trace

TRUE, PREDICTED = "true label", "predicted"


@dataclass(frozen=True, slots=True)
class ParetoOptions:
    """What to try.

    Args:
        shares: of the thinking tokens to keep, from 0 to 1.
        label: which importance is the true one, "answer" or "future".
        future_window: of the future label, see `label_trace`.
        max_answer_tokens: the longest answer.
        batch: answers generated at a time; bounds memory only.
        chunk: attention rows held at a time when labelling; bounds memory only.
        seed: of the random choice.

    Raises:
        DyntsError: a value is out of range.
    """

    shares: tuple[float, ...] = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    label: str = "answer"
    future_window: int = FUTURE_WINDOW
    max_answer_tokens: int = 1024
    batch: int = 8
    chunk: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        find_labels((self.label,), SHARED_LABELS)
        check_window(self.future_window)
        for name in ("max_answer_tokens", "batch", "chunk"):
            check_count(name, getattr(self, name), least=1)
        if not self.shares or list(self.shares) != sorted({*self.shares}):
            raise DyntsError(f"the shares to keep must be given once each, in ascending order, got {list(self.shares)}")
        if not (self.shares[0] >= 0 and self.shares[-1] <= 1):
            raise DyntsError(f"the shares to keep must lie between 0 and 100%, got {list(self.shares)}")


@dataclass(frozen=True, slots=True)
class Pareto:
    """The experiment on one model.

    Args:
        model: answers from what it is left of a trace, and labels it.
        tokenizer: its tokenizer.
        predictor: of the model, to choose by predicted importance too; None leaves that out.
        options: what to try.

    Raises:
        DyntsError: the predictor is not of this model, or predicts another label than the true one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    predictor: ImportancePredictor | None
    options: ParetoOptions

    def __post_init__(self) -> None:
        if self.predictor is None:
            return
        self.predictor.check_model(self.model)
        predicts = shared_label(self.predictor.config.label)
        if predicts != self.options.label:
            raise DyntsError(
                f"the predictor predicts the {predicts} label, the true one is to be {self.options.label}: "
                f"give --label {predicts}, or another predictor"
            )

    @torch.no_grad()
    def scores(self, place: int, tokens: TokenizedTrace) -> dict[str, torch.Tensor]:
        """Return what thinking tokens are chosen by, [L] each, by the name of the curve.

        Args:
            place: of the trace, so that each has a random choice of its own.
            tokens: of the trace.
        """
        options = self.options
        labelled = label_trace(
            self.model, tokens, (options.label,), chunk=options.chunk, future_window=options.future_window
        )
        # tokens without a label rank lowest, at the top and at the bottom
        true, length = labelled.labels[options.label], len(labelled.hidden)
        scores = {f"top, {TRUE}": true}
        if self.predictor is not None:
            predicted = self.predictor(labelled.hidden).cpu()
            scores[f"top, {PREDICTED}"] = predicted
        generator = torch.Generator().manual_seed(options.seed + place)
        scores |= {
            "recent": torch.arange(length),
            "random": torch.rand(length, generator=generator),
            f"bottom, {TRUE}": -true,
        }
        if self.predictor is not None:
            scores[f"bottom, {PREDICTED}"] = -predicted
        return scores

    def measure(self, place: int, trace: Trace, tokens: TokenizedTrace, grader: Grader) -> Row:
        """Answer one trace's question from each choice of its thinking tokens.

        Args:
            place: of the trace, see `scores`.
            trace: the trace.
            tokens: of the trace.
            grader: compares answers.

        Returns:
            "thinking_tokens", and by curve and share "correct" and "truncated" (stopped by `max_answer_tokens`).
        """
        options = self.options
        answers = answers_by_share(
            self.model,
            tokens,
            self.scores(place, tokens),
            options.shares,
            end_tokens=end_tokens(self.model),
            max_new_tokens=options.max_answer_tokens,
            batch=options.batch,
        )
        verdicts: dict[str, bool] = {}

        def is_right(ids: list[int]) -> bool:
            text = decode_text(self.tokenizer, ids, end_tokens(self.model))
            if text not in verdicts:
                verdicts[text] = grader.grade(text, trace.answer) is Verdict.CORRECT
            return verdicts[text]

        return {
            "thinking_tokens": tokens.thinking_end - tokens.question_end,
            "correct": {name: [is_right(ids) for ids in found] for name, found in answers.items()},
            "truncated": {
                name: [len(ids) == options.max_answer_tokens for ids in found] for name, found in answers.items()
            },
        }


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """Answers from one choice of tokens.

    Attributes:
        share: of the thinking tokens kept.
        correct: right answers.
        truncated: answers that were stopped by the limit of new tokens.
        low: of the 95% interval of the accuracy (Wilson).
        high: likewise.
    """

    share: float
    correct: int
    truncated: int
    low: float
    high: float


def curves(rows: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> dict[str, list[ParetoPoint]]:
    """Return the points of each curve.

    Args:
        rows: of `Pareto.measure`, at least one.
        shares: of the thinking tokens that are kept.
    """
    found = {}
    for name in rows[0]["correct"]:
        right = [sum(row["correct"][name][at] for row in rows) for at in range(len(shares))]
        cut = [sum(row["truncated"][name][at] for row in rows) for at in range(len(shares))]
        intervals = [wilson(correct, len(rows)) for correct in right]
        found[name] = [
            ParetoPoint(share, correct, truncated, interval.low, interval.high)
            for share, correct, truncated, interval in zip(shares, right, cut, intervals, strict=True)
        ]
    return found


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares from percentages such as "0,5,10".

    Raises:
        DyntsError: one is no number.
    """
    try:
        return tuple(float(part) / 100 for part in text.split(","))
    except ValueError as error:
        raise DyntsError(f"the shares to keep must be percentages such as 0,5,10,100, got {text!r}") from error


def weights_sha256(predictor: ImportancePredictor) -> str:
    """Tells predictors apart, wherever they lie."""
    digest = hashlib.sha256()
    for weights in predictor.state_dict().values():
        digest.update(weights.float().cpu().numpy().tobytes())
    return digest.hexdigest()
