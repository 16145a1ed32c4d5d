"""Drive a continuous batch and keep, of each sequence, what dynts and the reference are compared by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from against_reference import CONFIG, reference_of
from decoding import TOLERANCE, predictor_for, random_tokens
from dynts.cache.cache import BudgetCache
from dynts.config import CompressionConfig, Sampling
from dynts.decode.compress import Session, compress
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.tasks import LiveRow, RowTask, RowToken
from method_table import CASES
from reference import Turn


@dataclass
class Joining:
    """A sequence, and what came of it.

    Attributes:
        arrives: the step before which it joins, if there is a free row by then.
        length: tokens after which it ends.
        leaves: tokens after which nobody waits for it any more; None for somebody who waits to the end.
    """

    prompt: list[int]
    arrives: int
    length: int
    leaves: int | None = None
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0, max_new_tokens=200))
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    failed: list[Exception] = field(default_factory=list)
    numbers: list[bool] = field(default_factory=list)

    def task(self) -> RowTask:
        """What the batch is given."""

        def tell(token: RowToken) -> bool:
            assert not task.cancelled, "nobody is told who has left"
            self.tokens.append(token.token)
            self.numbers.append(not token.failed)
            task.cancelled = len(self.tokens) == self.leaves
            return len(self.tokens) == self.length

        task = RowTask(self.prompt, self.sampling, tell, self.failed.append)
        self.known = task
        return task


def some_stream() -> list[Joining]:
    """More sequences than there are rows; some evict several times, one ends at its first token, one is given up."""
    return [
        Joining(random_tokens(5, 1), 0, 40),
        Joining(random_tokens(9, 2), 0, 3),
        Joining(random_tokens(7, 3), 1, 60),
        Joining(random_tokens(12, 4), 4, 1),
        Joining(random_tokens(3, 5), 9, 35, leaves=20),
        Joining(random_tokens(14, 6), 9, 45),
    ]


class Watched(ContinuousBatch):
    """A batch that checks itself after every step, and keeps logits and survivors."""

    def __init__(self, session: Session, rows: int, prefill_tokens: int, joining: Sequence[Joining]) -> None:
        super().__init__(session, rows, prefill_tokens)
        self.joining = joining
        self.seen: list[int] = []
        self.empty: list[int] = []
        self.caches: list[BudgetCache] = []
        self.read: dict[int, list[int]] = {}

    def of(self, row: LiveRow) -> Joining:
        return next(each for each in self.joining if getattr(each, "known", None) is row.task)

    def _choose(self, rows: list[LiveRow], logits: Tensor, cache: BudgetCache) -> None:
        for number, row in enumerate(rows):
            self.of(row).logits.append(logits[number].clone())
        self._note(rows)
        super()._choose(rows, logits, cache)

    def _decode(self, cache: BudgetCache) -> Tensor:
        self.seen.append(cache.batch)
        self.empty.append(cache.lengths.count(0))
        self.lengths = cache.lengths
        logits = super()._decode(cache)
        cache.check_integrity()
        return logits

    def _forward(self, cache: BudgetCache, ids: Tensor, mask: Tensor | None) -> Tensor:
        if cache is not self.cache:
            self.caches.append(cache)  # so that no other has its id
            self.read.setdefault(id(cache), []).append(ids.shape[1])
        return super()._forward(cache, ids, mask)

    def _note(self, rows: list[LiveRow]) -> None:
        """Give the positions that the latest compaction kept to the rows that it evicted from."""
        for positions in self.session.kept_positions:
            for number, row in enumerate(rows):
                own = positions[..., number, :] if positions.ndim == 2 else positions[:, number]
                live = own[own >= 0].view(*own.shape[:-1], -1)
                if live.shape[-1] <= self.lengths[number]:
                    self.of(row).kept.append(live)
        self.session.kept_positions.clear()


def run_joining(
    model: PreTrainedModel,
    name: str,
    joining: Sequence[Joining],
    rows: int,
    prefill_tokens: int,
    config: CompressionConfig = CONFIG,
    **options: object,
) -> Watched:
    """Let sequences join as they arrive, until all have left."""
    method = CASES[name].method
    with compress(model, method, config, predictor_for(method), record=True, **options) as session:  # type: ignore[arg-type]
        batch = Watched(session, rows, prefill_tokens, joining)
        waiting = sorted(joining, key=lambda each: each.arrives)
        step = 0
        while waiting or not batch.idle:
            while waiting and waiting[0].arrives <= step and batch.free:
                batch.add(waiting.pop(0).task())
            assert batch.free >= 0
            batch.step()
            step += 1
            assert step < 10_000
    return batch


def check_joined(
    model: PreTrainedModel,
    name: str,
    each: Joining,
    tolerance: float = TOLERANCE,
    config: CompressionConfig = CONFIG,
) -> None:
    """A sequence got the tokens, logits and survivors of the reference, which reads it alone."""
    assert not each.failed
    assert len(each.tokens) == (each.length if each.leaves is None else min(each.length, each.leaves))
    run = reference_of(model, name, [Turn(each.prompt, len(each.tokens))], [each.tokens], config)
    logits = torch.stack(each.logits)[: len(each.tokens)]
    assert [int(row.argmax()) for row in logits] == each.tokens, "greedy"
    difference = (logits.log_softmax(-1) - run.logits[0].float().log_softmax(-1)).abs().max().item()
    assert difference < tolerance, f"log-probabilities differ by {difference}"
    assert [kept.tolist() for kept in each.kept] == [kept.tolist() for kept in run.kept_positions]
