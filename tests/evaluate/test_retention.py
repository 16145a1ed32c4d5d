"""Answering from a part of the thinking, against a forward pass without a cache and with an explicit mask."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from dynts.evaluate.retention import answer_from_kept, keep_top
from dynts.training.tokens import TokenizedTrace
from tiny import tiny_model

NEW = 6


def reference(model: PreTrainedModel, trace: TokenizedTrace, kept: torch.Tensor, end: int) -> list[int]:
    """Greedy, the whole sequence anew each step: rows from the closing marker on do not see hidden tokens."""
    ids = list(trace.ids[: trace.answer_start])
    answer: list[int] = []
    for _ in range(NEW):
        size = len(ids)
        visible = torch.ones(size, size, dtype=torch.bool).tril()
        hidden = torch.zeros(size, dtype=torch.bool)
        hidden[trace.question_end : trace.thinking_end] = ~kept
        # earlier tokens, most of the marker included, were read while everything was still there
        visible[trace.answer_start - 1 :] &= ~hidden
        bias = torch.zeros(1, 1, size, size).masked_fill(~visible, torch.finfo(torch.float32).min)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), attention_mask=bias, use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == end:
            break
        answer.append(token)
        ids.append(token)
    return answer


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.quick
def test_equals_an_explicit_mask(kind: str) -> None:
    model = tiny_model(kind)
    generator = torch.Generator().manual_seed(1)
    ids = tuple(torch.randint(5, model.config.vocab_size, (30,), generator=generator).tolist())
    trace = TokenizedTrace(ids, question_end=6, thinking_end=22, answer_start=23)
    kept = torch.rand(5, 16, generator=generator) < 0.5
    kept[0], kept[1] = True, False
    end = reference(model, trace, kept[2], -1)[3]  # so that a row ends early
    answers = answer_from_kept(model, trace, kept, end_token=end, max_new_tokens=NEW)
    assert answers == [reference(model, trace, row, end) for row in kept]
    assert len(answers[2]) <= 3


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0, 1))
def test_keep_top(scores: list[int], share: float) -> None:
    kept = keep_top(scores, share)
    count = round(share * len(scores))
    # by sorting pairs: the higher score first, then the later token
    best = sorted(range(len(scores)), key=lambda index: (scores[index], index), reverse=True)[:count]
    assert set(kept.nonzero()[:, 0].tolist()) == set(best)


def test_keep_top_ranks_missing_labels_lowest() -> None:
    assert keep_top([float("nan"), 0.0, float("nan"), 1.0], 0.5).tolist() == [False, True, False, True]
