"""What surrounds each forward pass of the decoder: masks for the slots before it, bookkeeping after it."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.method import Attending, Observed
from dynts.cache.step import Step, Turn
from dynts.decode.refusals import check_first_pass
from dynts.errors import UnsupportedError
from dynts.models.attention import Softmax, is_observed, kernel_of
from dynts.models.lengths import RowLengths

TOKENS_AT_ONCE = 2048
"""The most tokens of a forward pass over a finished text, which bounds the memory of its activations."""


def forced_spans(
    cache: BudgetCache, question: int, end: int, at_once: int = TOKENS_AT_ONCE
) -> Iterator[tuple[int, int]]:
    """Yield the parts of a finished text to feed one after another: the question, then up to each compaction at a time.

    When a compaction is due follows from lengths alone, so the tokens between two of them can be fed together. After
    each the cache holds what it would hold had `generate` written these tokens one by one, rounding aside.

    Args:
        cache: a new cache of an entered session, for one row.
        question: tokens of the question.
        end: tokens to feed in all.
        at_once: the most tokens of a part that is not the question.

    Yields:
        Where a part starts and ends. It has to be fed before the next one is asked for.
    """
    cache.announced = Turn(0, question, (question,))
    at_once = 1 if cache.one_at_a_time else at_once
    start, stop = 0, question
    while start < end:
        yield start, stop
        start, stop = stop, min(end, stop + at_once, stop + (cache.room or at_once))


def step_mask(model: PreTrainedModel, shown: torch.Tensor) -> torch.Tensor:
    """Return the mask of a one-token step of rows that hold different numbers of tokens.

    Args:
        model: whose attention implementation it is for.
        shown: bool [batch, slots], those that hold a token.

    Returns:
        Bool or additive [batch, 1, 1, slots]; for FlashAttention [batch, slots].
    """
    implementation = model.config._attn_implementation
    if "flash" in implementation:
        return shown
    shown = shown[:, None, None]
    if "sdpa" in implementation:
        return shown
    dtype = _embeddings_dtype(model)
    return torch.zeros(shown.shape, dtype=dtype, device=shown.device).masked_fill(~shown, torch.finfo(dtype).min)


class Observer:
    """Shows a forward pass's queries and keys to the method of its cache (an `AttentionObserver`).

    Args:
        cache: that the pass continues.
        step: the pass.

    Attributes:
        seen: by the full-attention layer's index.
        shown: each call's layer, and the shape of its keys.
    """

    def __init__(self, cache: BudgetCache, step: Step) -> None:
        self.method = cache.method
        self.groups = cache.full_layers
        self.step = step
        self.seen: dict[int, Observed] = {}
        self.shown: list[tuple[int, torch.Size]] = []

    @torch.no_grad()
    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> None:
        """Look at a layer. Arguments as in `AttentionObserver`."""
        if layer not in self.groups:
            return
        self.shown.append((layer, key.shape))
        if not self.method.observes_attention:
            return
        live = None if self.step.live is None else self.step.live.to(query.device)
        how = Attending(live, self.step.kind != "turn", softmax)
        self.seen[layer] = Observed(self.method.observe_attention(self.groups[layer], query, key, how), how)


class ForwardPass:
    """One forward pass on a `BudgetCache`, planned when this is made and committed by `end`.

    Args:
        model: the model.
        cache: what the pass continues.
        kwargs: what the decoder is called with.

    Attributes:
        hidden: the last hidden state, [batch, new tokens, hidden size], once the decoder has given it.
    """

    def __init__(self, model: PreTrainedModel, cache: BudgetCache, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedError("attention_mask must be 2D (1 for tokens, 0 for padding) under a budget")
        main = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        self.model = model
        self.cache = cache
        self.kwargs = kwargs
        rows, columns = main.shape[:2]
        self.step = cache.plan(rows, columns, mask, kwargs.get("position_ids"))
        self.observer = Observer(cache, self.step)
        self.hidden: torch.Tensor | None = None

    @property
    def fixed(self) -> bool:
        """Whether it is a decode step at the shape of all slots of the budget."""
        return self.step.kind == "generated" and self.cache.occupancy.fixed_shape

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that the decoder runs with."""
        return decoder_arguments(self.model, self.cache, self.step, self.kwargs, self.observer)

    def end(self) -> None:
        """Commit the pass.

        Raises:
            UnsupportedError: the first pass has shown that the model does not cache or attend as dynts needs it.
        """
        assert self.hidden is not None
        if not self.cache.occupancy.columns:
            check_first_pass(self.model, self.cache, self.observer.shown)
        tokens, device, seen = self.kwargs.get("input_ids"), self.cache.device, self.observer.seen
        if tokens is None:
            tokens = torch.full(self.hidden.shape[:2], -1, device=device)
        observed = [seen[layer] for layer in self.cache.full_layers] if self.cache.method.observes_attention else []
        self.cache.commit(self.step, tokens.to(device), self.step.positions.to(device), self.hidden, observed)


def decoder_arguments(
    model: PreTrainedModel, cache: BudgetCache, step: Step, kwargs: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    """Return the keyword arguments that a decoder runs with in a dynts context.

    Args:
        model: the model.
        cache: what the pass continues.
        step: the pass.
        kwargs: what the decoder is called with.
        observer: shows the pass's attention to the cache's method.
    """
    changes: dict[str, Any] = {"position_ids": step.positions, "attention_mask": None}
    if step.live is not None:
        slots = step_mask(model, step.live) if step.kind == "generated" else step.live
        changes["attention_mask"] = slots
        if cache.sliding_layers:
            changes["attention_mask"] = _masks_of_layers(model, cache, step, slots, kwargs.get("attention_mask"))
        attend = kernel_of(model)
        if step.slots is not None and attend is not None:
            changes["row_lengths"] = RowLengths((step.slots[1] + 1).int(), slots, attend)
    # whether heads can have their own tokens shows once they attend
    if cache.method.observes_attention or (cache.native and not cache.occupancy.columns and is_observed(model)):
        changes["attention_observer"] = observer
    return kwargs | changes


def _masks_of_layers(
    model: PreTrainedModel, cache: BudgetCache, step: Step, slots: torch.Tensor, logical: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """Return masks by type of layer: over slots for full attention, over columns or a ring for sliding windows.

    Layers that keep a state are told which of the new tokens are padding.
    """
    if step.ring is not None:
        return {"full_attention": slots, "sliding_attention": step_mask(model, step.ring.shown)}
    common: dict[str, Any] = {
        "config": model.config,
        "inputs_embeds": torch.empty((len(slots), step.tokens, 0), dtype=_embeddings_dtype(model), device=slots.device),
        CACHE: cache,
        "position_ids": None,
    }
    new = slots[:, -step.tokens :] if step.tokens > 1 else None
    return {
        **dict.fromkeys(("linear_attention", "conv"), new),
        "full_attention": create_causal_mask(attention_mask=slots, **common),
        "sliding_attention": create_sliding_window_causal_mask(attention_mask=logical, **common),
    }


def _embeddings_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of a model's input embeddings, in which transformers makes additive masks."""
    embeddings: Any = model.get_input_embeddings()
    return cast(torch.dtype, embeddings.weight.dtype)
