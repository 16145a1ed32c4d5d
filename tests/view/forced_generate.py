"""What a method keeps of a trace, and what a page should say of it, found without `dynts.view`."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

import dynts
from decoding import ForcedTokens
from dynts.decode.arm import Arm


@dataclass
class Kept:
    """The sets that survived each compaction, one set for each layer and KV head (or one), by step."""

    question: int
    local_window: int
    compactions: list[tuple[int, list[set[int]]]]

    def sets_at(self, step: int) -> list[set[int]]:
        """What is cached at a step."""
        fed = self.question + step
        done = [(at, sets) for at, sets in self.compactions if at <= step]
        count = len(self.compactions[0][1]) if self.compactions else 1
        at, sets = done[-1] if done else (-self.question, [set() for _ in range(count)])
        return [{*held, *range(self.question + at, fed)} for held in sets]

    def counts_at(self, step: int) -> dict[str, float]:
        """The numbers at the head of a column."""
        sets, fed = self.sets_at(step), self.question + step
        judged = max((self.question + at - self.local_window for at, _ in self.compactions if at <= step), default=0)
        counts = dict.fromkeys(["cached", "question", "selected", "waiting", "local"], 0.0)
        for held in sets:
            for position in held:
                if position < self.question:
                    kind = "question"
                elif position >= fed - self.local_window:
                    kind = "local"
                else:
                    kind = "selected" if position < judged else "waiting"
                counts[kind] += 1 / len(sets)
                counts["cached"] += 1 / len(sets)
        return {**counts, "evicted": fed - counts["cached"]}


def forced_generate(
    model: PreTrainedModel, ids: tuple[int, ...], question: int, viewed: Arm, config: dynts.CompressionConfig
) -> Kept:
    """Let `generate` itself write these tokens."""
    with dynts.compress(model, viewed.method, config, viewed.predictor, record=True) as session:
        output = model.generate(
            torch.tensor([ids[:question]]),
            max_new_tokens=len(ids) - question,
            do_sample=False,
            logits_processor=[ForcedTokens(ids)],
        )
    assert output[0].tolist() == list(ids)
    steps = [compaction.step for compaction in session.stats[0].compactions]
    sets = [
        [set(row.tolist()) for row in (kept if kept.ndim == 2 else kept[:, 0].flatten(0, 1))]
        for kept in session.kept_positions
    ]
    return Kept(question, config.local_window, list(zip(steps, sets, strict=True)))
