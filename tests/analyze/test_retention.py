"""Answering from a part of the thinking, against a forward pass without a cache and with an explicit mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from dynts.analyze.retention import answer_from_kept, answers_by_share, keep_top
from dynts.traces.tokens import TokenizedTrace
from tiny import SLIDING_WINDOW, tiny_model

NEW = 6


def reference(model: PreTrainedModel, trace: TokenizedTrace, kept: torch.Tensor, end: int) -> list[int]:
    """Greedy, the whole sequence anew each step: rows from the closing marker on do not see evicted tokens."""
    ids = list(trace.ids[: trace.answer_start])
    answer: list[int] = []
    for _ in range(NEW):
        size = len(ids)
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        hidden = torch.zeros(size, dtype=torch.bool)
        hidden[trace.question_end : trace.thinking_end] = ~kept
        visible = causal.clone()
        # earlier tokens, most of the marker included, were read while everything was still there
        visible[trace.answer_start - 1 :] &= ~hidden
        mask = {"full_attention": _bias(visible), "sliding_attention": _bias(causal.triu(1 - SLIDING_WINDOW))}
        hybrid = "sliding_attention" in (getattr(model.config, "layer_types", None) or ())
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([ids]),
                attention_mask=mask if hybrid else mask["full_attention"],
                use_cache=False,
            )
        token = int(output.logits[0, -1].argmax())
        if token == end:
            break
        answer.append(token)
        ids.append(token)
    return answer


def _bias(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, 1, *visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def make_trace(model: PreTrainedModel) -> tuple[TokenizedTrace, torch.Tensor]:
    """A trace of 16 thinking tokens, and five choices among them: all, none, and three of different sizes."""
    generator = torch.Generator().manual_seed(1)
    ids = tuple(torch.randint(5, model.config.vocab_size, (30,), generator=generator).tolist())
    kept = torch.rand(5, 16, generator=generator) < 0.5
    kept[0], kept[1] = True, False
    return TokenizedTrace(ids, question_end=6, thinking_end=22, answer_start=25), kept


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "qwen3_5", "falcon_h1", "jamba"])
@pytest.mark.quick
def test_equals_an_explicit_mask(kind: str) -> None:
    model = tiny_model(kind)
    trace, kept = make_trace(model)
    end = reference(model, trace, kept[2], -1)[3]  # so that a row ends early
    answers = answer_from_kept(model, trace, kept, end_tokens={end, 10_000}, max_new_tokens=NEW)
    assert answers == [reference(model, trace, row, end) for row in kept]
    assert len(answers[2]) <= 3


def test_rows_of_one_size_are_batched_and_equal_rows_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    trace, _ = make_trace(model)
    kept = torch.eye(16, dtype=torch.bool)[[3, 4, 3, 5, 4, 0]]
    batches: list[int] = []
    forward = model.forward

    def counting(*, input_ids: torch.Tensor, **kwargs: object) -> object:
        batches.append(len(input_ids))
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    answers = answer_from_kept(model, trace, kept, end_tokens=(), max_new_tokens=NEW, batch=3)
    assert batches == [3] * NEW + [1] * NEW
    monkeypatch.undo()
    assert answers == [reference(model, trace, row, -1) for row in kept]


def test_answers_by_share() -> None:
    model = tiny_model("qwen3")
    trace, _ = make_trace(model)
    scores = {"early": -torch.arange(16), "late": torch.arange(16)}
    answers = answers_by_share(model, trace, scores, (0, 0.25, 1), end_tokens=(), max_new_tokens=NEW)
    for name, first in (("early", 0), ("late", 12)):
        for answer, keep in zip(answers[name], (slice(0, 0), slice(first, first + 4), slice(0, 16)), strict=True):
            kept = torch.zeros(16, dtype=torch.bool)
            kept[keep] = True
            assert answer == reference(model, trace, kept, -1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0, 1))
def test_keep_top(scores: list[int], share: float) -> None:
    kept = keep_top(scores, share)
    count = round(share * len(scores))
    # by sorting pairs: the higher score first, then the later token
    best = sorted(range(len(scores)), key=lambda index: (scores[index], index), reverse=True)[:count]
    assert set(kept.nonzero()[:, 0].tolist()) == set(best)


def test_keep_top_ranks_missing_labels_lowest() -> None:
    assert keep_top([float("nan"), 0.0, float("nan"), 1.0], 0.5).tolist() == [False, True, False, True]
