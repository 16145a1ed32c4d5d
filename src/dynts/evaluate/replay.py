"""Teacher-forced fidelity: how far eviction moves the distributions that a trace's tokens are drawn from.

The tokens of a finished trace are fed as if they were being generated, and the cache is compacted on its schedule by
the method itself, through the same `BudgetCache` as in decoding. When a compaction is due follows from lengths alone,
so the tokens between two compactions are fed at a time: a replay takes about as many forward passes as there are
compactions, not tokens.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from dynts.cache.interface import CACHE
from dynts.decode.compress import Session, compress
from dynts.decode.forward import forced_spans
from dynts.errors import DyntsError
from dynts.models import input_device
from dynts.traces.tokens import TokenizedTrace

TOKENS_AT_ONCE = 512
"""The most tokens of a forward pass: each has a row of logits, in the model's dtype."""
ROWS_AT_ONCE = 64
"""Rows of logits compared at a time in float32, for a large vocabulary takes much memory."""


@dataclass(frozen=True, slots=True)
class FullCache:
    """What a model makes of a trace when nothing is evicted.

    Attributes:
        logits: [answer tokens, vocabulary], what each answer token is drawn from.
        log_likelihood: float32 [generated tokens], log p of each token after the question, in nats.
    """

    logits: torch.Tensor
    log_likelihood: torch.Tensor


@dataclass(frozen=True, slots=True)
class Replay:
    """A trace under a budget, beside the full cache.

    Attributes:
        kl: float32 [answer tokens], KL(full cache || compressed) of the distribution that each is drawn from, in nats.
            The end of the turn is one of them.
        log_likelihood: float32 [answer tokens], log p of each, in nats.
        loss: float32 [answer tokens], by how much that is less than with the full cache.
        thinking_loss: float32 [thinking tokens], the same of the thinking, closing marker included. Over traces that
            the model has sampled its mean is an estimate of the KL of a thinking token.
        kept: cached tokens that the first answer token is drawn from.
        peak_tokens: most cached tokens.
        mean_tokens: cached tokens that a decode step attends to, its own included, on average.
        compactions: how often tokens were evicted.
    """

    kl: torch.Tensor
    log_likelihood: torch.Tensor
    loss: torch.Tensor
    thinking_loss: torch.Tensor
    kept: int
    peak_tokens: int
    mean_tokens: float
    compactions: int


def replay(session: Session, trace: TokenizedTrace, full: FullCache | None = None) -> Replay:
    """Feed a trace under a session's budget, and compare its tokens with those under the full cache.

    After each compaction the cache holds what it would hold had `generate` written these tokens one by one, rounding
    aside.

    Args:
        session: what `dynts.compress` returned, not entered. It can replay any number of traces.
        trace: a trace with an answer.
        full: what `with_full_cache` gave for this trace, where several settings share it; None computes it.

    Raises:
        DyntsError: the trace has no question or no answer, or the budget is too small for its question.
    """
    if full is None:
        full = with_full_cache(session.model, trace)
    with session:
        fed = _feed(session, trace)
    log_likelihood = torch.cat(fed.log_likelihood).cpu()
    loss = full.log_likelihood - log_likelihood
    thinking = trace.answer_start - trace.question_end
    return Replay(
        kl=_divergence(full.logits, torch.cat(fed.logits)),
        log_likelihood=log_likelihood[thinking:],
        loss=loss[thinking:],
        thinking_loss=loss[:thinking],
        kept=fed.kept,
        peak_tokens=fed.peak,
        mean_tokens=fed.attended / max(1, fed.steps),
        compactions=fed.compactions,
    )


def with_full_cache(model: PreTrainedModel, trace: TokenizedTrace) -> FullCache:
    """Feed a trace and evict nothing.

    Args:
        model: the model.
        trace: the trace.

    Raises:
        DyntsError: the trace has no question or no answer.
    """
    with compress(model, "full") as session:
        fed = _feed(session, trace)
    return FullCache(torch.cat(fed.logits), torch.cat(fed.log_likelihood).cpu())


def _log_likelihood(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log p of tokens [rows] by logits [rows, vocabulary]: float32 [rows] in nats."""
    parts = zip(logits.split(ROWS_AT_ONCE), tokens.split(ROWS_AT_ONCE), strict=True)
    return -torch.cat([cross_entropy(rows.float(), drawn, reduction="none") for rows, drawn in parts])


def _divergence(full: torch.Tensor, compressed: torch.Tensor) -> torch.Tensor:
    """KL(full || compressed) of each row: float32 [rows] in nats, on the CPU. Arguments: logits [rows, vocabulary]."""
    found = []
    for expected, got in zip(full.split(ROWS_AT_ONCE), compressed.split(ROWS_AT_ONCE), strict=True):
        target, log_p = expected.float().log_softmax(dim=-1), got.float().log_softmax(dim=-1)
        found.append(kl_div(log_p, target, reduction="none", log_target=True).sum(dim=-1))
    return torch.cat(found).cpu()


@dataclass(slots=True)
class _Fed:
    """What came of feeding a trace.

    Attributes:
        logits: of the rows that the answer's tokens are drawn from, [rows, vocabulary] of each forward pass.
        log_likelihood: of the generated tokens, float32 [tokens] of each forward pass.
        kept: see `Replay`, as the others.
        attended: cached tokens that the decode steps would have attended to, all together.
        steps: how many decode steps there would have been.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    log_likelihood: list[torch.Tensor] = field(default_factory=list)
    kept: int = 0
    peak: int = 0
    compactions: int = 0
    attended: int = 0
    steps: int = 0


@torch.no_grad()
def _feed(session: Session, trace: TokenizedTrace) -> _Fed:
    """Feed all of a trace but its last token in an entered session, up to each compaction at a time."""
    end = len(trace.ids) - 1
    if not 0 < trace.question_end <= trace.answer_start <= end:
        raise DyntsError(
            f"a trace of {end + 1} tokens whose question ends at {trace.question_end} and whose answer starts at "
            f"{trace.answer_start} cannot be replayed: it needs a question and an answer after it"
        )
    cache, model = session.new_cache(), cast(Any, session.model)
    ids = torch.tensor([trace.ids], device=input_device(session.model))
    fed = _Fed()
    for start, stop in forced_spans(cache, trace.question_end, end, TOKENS_AT_ONCE):
        before, size = cache.occupancy.length, stop - start
        # of the question only the last row has a generated token drawn from it
        output = model(
            input_ids=ids[:, start:stop], **{CACHE: cache}, use_cache=True, logits_to_keep=size if start else 1
        )
        logits = output.logits[0]
        fed.log_likelihood.append(_log_likelihood(logits, ids[0, stop + 1 - len(logits) : stop + 1]))
        drawn = min(size, stop + 1 - trace.answer_start)  # rows that the answer's tokens are drawn from
        if drawn > 0:
            fed.kept = fed.kept or before + size + 1 - drawn
            fed.logits.append(logits[-drawn:])
        if start:
            fed.attended += size * before + size * (size + 1) // 2
            fed.steps += size
        fed.peak = max(fed.peak, before + size)
        fed.compactions += cache.occupancy.length < before + size
    return fed
