"""Which tokens a method keeps when it decodes a given trace."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.interface import CACHE
from dynts.chat.markers import ThinkFormat
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.decode.compress import Predictor, compress
from dynts.decode.forward import forced_spans
from dynts.models import input_device
from dynts.traces.tokens import TokenizedTrace


@dataclass(frozen=True, slots=True)
class Eviction:
    """What one compaction changed.

    Attributes:
        step: tokens generated and fed back before it.
        before: cached tokens of each set before.
        after: cached tokens of each set after.
        positions: int64 [changed], the tokens that fewer sets hold than before, in ascending order.
        holders: int64 [changed], how many sets still hold each of them.
    """

    step: int
    before: int
    after: int
    positions: torch.Tensor
    holders: torch.Tensor


@dataclass(slots=True)
class KeptTokens:
    """What a method kept of a trace.

    Attributes:
        name: of the method.
        sets: sets of kept tokens: 1 with shared granularity, layers x KV heads with native granularity.
        evictions: one a compaction.
    """

    name: str
    sets: int
    evictions: list[Eviction] = field(default_factory=list)


@torch.no_grad()
def forced_decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenizedTrace,
    arm: Arm[Predictor],
    config: CompressionConfig,
    progress: Callable[[int, int], None] | None = None,
    markers: ThinkFormat | None = None,
) -> KeptTokens:
    """Decode a trace under a budget, as `generate` would if it chose these very tokens.

    The last token is not fed, as it is not in generation.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        tokens: the trace.
        arm: the method; its budget is `config`.
        config: the budget.
        progress: called after each part that is fed, with the steps done and to do.
        markers: as for `dynts.compress`.

    Raises:
        DyntsError: something that the method needs is missing, or the budget is too small for the question.
    """
    question, steps = tokens.question_end, len(tokens.ids) - tokens.question_end - 1
    ids = torch.tensor([tokens.ids], device=input_device(model))
    decoder = model.get_decoder()
    with compress(
        model, arm.method, config, arm.predictor, tokenizer=tokenizer, markers=markers, record=True
    ) as session:
        cache = session.new_cache()
        kept = KeptTokens(
            arm.name(question=False), len(cache.full_layers) * cache.method.kv_heads if cache.native else 1
        )
        holders = torch.full((len(tokens.ids),), kept.sets)
        for start, stop in forced_spans(cache, question, question + steps):
            decoder(input_ids=ids[:, start:stop], **{CACHE: cache}, use_cache=True)
            # a part goes up to the next compaction, so there is one at most
            if len(session.kept_positions) > len(kept.evictions):
                compaction, held = cache.stats.compactions[-1], session.kept_positions[-1]
                now, fed = torch.bincount(held[held >= 0], minlength=len(holders)), question + compaction.step
                changed = (now[:fed] != holders[:fed]).nonzero()[:, 0]
                holders[changed] = now[changed]
                kept.evictions.append(Eviction(*compaction, changed, now[changed]))
            if progress is not None:
                progress(stop - question, steps)
    return kept
