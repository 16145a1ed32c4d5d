"""What surrounds each forward pass of the decoder: masks for the slots before it, bookkeeping after it."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.decode.refusals import check_first_pass
from dynts.errors import UnsupportedError


class SlotMasks:
    """Attention masks of decode steps in a batch whose rows hold different numbers of tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.implementation = model.config._attn_implementation
        self.dtype = model.get_decoder().dtype

    def step(self, shown: torch.Tensor) -> torch.Tensor:
        """Mask of a one-token step: bool or additive [batch, 1, 1, slots], or for FlashAttention [batch, slots].

        Args:
            shown: bool [batch, slots], those that hold a token.
        """
        if "flash" in self.implementation:
            return shown
        shown = shown[:, None, None]
        if "sdpa" in self.implementation:
            return shown
        return torch.zeros(shown.shape, dtype=self.dtype, device=shown.device).masked_fill(
            ~shown, torch.finfo(self.dtype).min
        )


class ForwardPass:
    """One forward pass on a `BudgetCache`: `begin` gives the decoder its keyword arguments, `end` commits."""

    def __init__(self, model: PreTrainedModel, cache: BudgetCache, masks: SlotMasks, kwargs: dict[str, Any]) -> None:
        self.model = model
        self.cache = cache
        self.masks = masks
        self.kwargs = kwargs
        self.hidden: torch.Tensor | None = None
        self.shown: list[tuple[int, torch.Size]] = []

    def begin(self) -> dict[str, Any]:
        """Keyword arguments for the decoder."""
        cache, kwargs = self.cache, dict(self.kwargs)
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedError("attention_mask must be 2D (1 for tokens, 0 for padding) under a budget")
        main = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        rows, columns = main.shape[:2]
        self.step = cache.plan(rows, columns, mask, kwargs.get("position_ids"))
        kwargs["position_ids"] = self.step.positions
        kwargs["attention_mask"] = None if self.step.live is None else self._for_layers(self.step.live, mask)
        if cache.method.observes_attention:
            kwargs["attention_observer"] = self._observe
        return kwargs

    def end(self) -> None:
        """Commit the pass, of which `hidden` is now the last hidden state: [batch, new tokens, hidden size].

        Raises:
            UnsupportedError: the first pass has shown that the model does not cache or attend as dynts needs it.
        """
        assert self.hidden is not None
        if not self.cache.occupancy.columns:
            check_first_pass(self.model, self.cache, self.shown)
        tokens, device = self.kwargs.get("input_ids"), self.cache.device
        if tokens is None:
            tokens = torch.full(self.hidden.shape[:2], -1, device=device)
        self.cache.commit(self.step, _own(tokens.to(device)), _own(self.step.positions.to(device)), self.hidden)

    @torch.no_grad()
    def _observe(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None
    ) -> None:
        cache, step = self.cache, self.step
        if layer in cache.full_layers:
            self.shown.append((layer, key.shape))
            live = None if step.live is None else step.live.to(query.device)
            how = {"scaling": scaling, "softcap": softcap, "live": live, "generated": step.kind != "turn"}
            cache.method.observe_attention(cache.full_layers[layer], query, key, **how)

    def _for_layers(self, live: torch.Tensor, logical: torch.Tensor | None) -> Any:
        """A mask over slots for full-attention layers; in hybrid models, one over columns for the others."""
        slots = self.masks.step(live) if self.step.kind == "generated" else live
        if not self.cache.sliding_layers:
            return slots
        shape = torch.empty((len(live), self.step.tokens, 0), dtype=self.masks.dtype, device=live.device)
        common: dict[str, Any] = {
            "config": self.model.config,
            "inputs_embeds": shape,
            CACHE: self.cache,
            "position_ids": None,
        }
        return {
            "full_attention": create_causal_mask(attention_mask=slots, **common),
            "sliding_attention": create_sliding_window_causal_mask(attention_mask=logical, **common),
        }


def _own(tokens: torch.Tensor) -> torch.Tensor:
    """The same values without keeping a longer tensor alive, of which these are a view."""
    return tokens.clone() if tokens._is_view() else tokens
