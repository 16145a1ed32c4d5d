"""Rows draw what transformers' warpers leave, by inverse CDF in the order of the vocabulary, computed in float64."""

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from dynts.config import Sampling
from dynts.decode.sampling import RowSampling, draws_of

pytestmark = pytest.mark.quick

CPU = torch.device("cpu")
STEPS, ROWS, VOCABULARY = 25, 12, 1000
IDS = torch.zeros(ROWS, 1, dtype=torch.long)


def logits(kind: str) -> Tensor:
    """Random scores [steps, rows, vocabulary] of a kind."""
    scores = 3 * torch.randn(STEPS, ROWS, VOCABULARY, generator=torch.Generator().manual_seed(5))
    if kind == "ties":
        return scores.round()  # about twenty tokens have the score of the twentieth
    if kind == "few":
        return scores.masked_fill(torch.arange(VOCABULARY) % 100 != 7, -torch.inf)  # fewer than top-k are possible
    return scores if kind == "float32" else scores.to(getattr(torch, kind))


def distribution(scores: Tensor, sampling: Sampling, more: tuple[LogitsProcessor, ...]) -> Tensor:
    """What transformers draws from, float64 [rows, vocabulary].

    Top-p sees a later token a trifle more likely than its equals, so that it leaves out the first of these; else its
    choice between them depends on the device's sort.
    """
    left = TemperatureLogitsWarper(sampling.temperature)(IDS, scores.double())  # type: ignore[arg-type]
    left = TopKLogitsWarper(sampling.top_k)(IDS, left)  # type: ignore[arg-type]
    nucleus = TopPLogitsWarper(sampling.top_p)(IDS, left + 1e-12 * torch.arange(VOCABULARY))  # type: ignore[arg-type]
    return LogitsProcessorList(more)(IDS, left.masked_fill(nucleus == -torch.inf, -torch.inf)).softmax(dim=-1)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["float32", "ties", "few", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("sampling", "more"),
    [
        (Sampling(STEPS), ()),
        (Sampling(STEPS, 0.9, top_p=1.0), ()),
        (Sampling(STEPS, 1.5, top_p=0.7, top_k=VOCABULARY), ()),
        (Sampling(STEPS, 1.5, top_p=1.0, top_k=5 * VOCABULARY), ()),
        (Sampling(STEPS, 1.0, top_p=0.05), ()),
        (Sampling(STEPS, 1.5, top_p=0.9), (MinPLogitsWarper(0.1), TypicalLogitsWarper(0.8))),
        (Sampling(STEPS, 0.6, top_k=1), ()),
    ],
    ids=["defaults", "no top-p", "top-p of all", "all", "one left", "more", "top-1"],
)
def test_tokens_are_those_of_an_inverse_cdf(kind: str, sampling: Sampling, more: tuple[LogitsProcessor, ...]) -> None:
    samplings = [Sampling(STEPS, sampling.temperature, sampling.top_p, sampling.top_k, seed) for seed in range(ROWS)]
    processor, given = RowSampling(samplings, CPU, more), [draws_of(sampling) for sampling in samplings]
    draws = [torch.rand(STEPS, generator=torch.Generator().manual_seed(seed)).double() for seed in range(ROWS)]
    checked = 0
    for step, scores in enumerate(logits(kind)):
        mass = distribution(scores, sampling, more).cumsum(dim=-1)
        chosen = processor(scores, [drawn[step] for drawn in given])
        for row, token in enumerate(chosen.tolist()):
            point = draws[row][step]
            if (mass[row] - point).abs().min() > 1e-5:  # else float32 decides
                assert token == int((mass[row] <= point).sum())
                checked += 1
    assert checked > 0.95 * STEPS * ROWS


def test_greedy_rows_and_rows_with_other_settings_share_a_batch() -> None:
    some = [Sampling(STEPS, 0.0, seed=1), Sampling(STEPS, 1.0, 0.9, 50, seed=2), Sampling(9, 2.0, 1.0, 5, seed=3)]
    samplings = [some[row % 3] for row in range(ROWS)]
    together = RowSampling(samplings, CPU)
    apart = [RowSampling([sampling], CPU) for sampling in samplings]
    for step, scores in enumerate(logits("float32")[:9]):
        draws = [draws_of(sampling)[step] for sampling in samplings]
        chosen = together(scores, draws).tolist()
        assert chosen == [int(one(scores[row : row + 1], draws[row : row + 1])) for row, one in enumerate(apart)]
        assert chosen[::3] == scores[::3].argmax(dim=-1).tolist()
