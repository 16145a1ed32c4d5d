"""What surrounds each forward pass of the decoder: masks for the slots before it, bookkeeping after it."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from dynts.cache.cache import BudgetCache
from dynts.cache.keyword import CACHE
from dynts.cache.selection import live_slots
from dynts.decode.support import check_first_pass
from dynts.errors import DyntsError, UnsupportedError


class SlotMasks:
    """Attention masks of decode steps in a batch whose rows hold different numbers of tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.implementation = model.config._attn_implementation
        self.dtype = model.get_decoder().dtype

    def step(self, cache: BudgetCache) -> torch.Tensor:
        """Mask of a one-token step: bool or additive [batch, 1, 1, slots + 1], or for FlashAttention [batch, slots + 1]."""
        used = cache.occupancy
        width = used.capacity if used.fixed_shape and used.capacity else used.length + 1
        shown = live_slots(cache.next_slots() + 1, width)
        if "flash" in self.implementation:
            return shown
        shown = shown[:, None, None]
        if "sdpa" in self.implementation:
            return shown
        return torch.zeros(shown.shape, dtype=self.dtype, device=shown.device).masked_fill(
            ~shown, torch.finfo(self.dtype).min
        )


class ForwardPass:
    """One forward pass on a `BudgetCache`: `before` gives the decoder its keyword arguments, `after` commits."""

    def __init__(self, model: PreTrainedModel, cache: BudgetCache, masks: SlotMasks, kwargs: dict[str, Any]) -> None:
        self.model = model
        self.cache = cache
        self.masks = masks
        self.kwargs = kwargs
        main = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        self.batch, self.count = main.shape[:2]
        self.device = cache.device
        self.shown: list[tuple[int, torch.Size]] = []

    def before(self) -> dict[str, Any]:
        """Keyword arguments for the decoder."""
        cache, kwargs = self.cache, dict(self.kwargs)
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedError("attention_mask must be 2D (1 for tokens, 0 for padding) under a budget")
        fed = cache.occupancy.columns
        self.generated = (self.count == 1 or cache.forced) and fed >= cache.announced_end and fed > 0
        cache.check_rows(self.batch)
        if self.generated and self.count == 1:
            cache.place_step()
            kwargs["attention_mask"] = None
            self.live = None
            if cache.occupancy.slots is not None:
                step = self.masks.step(cache)
                kwargs["attention_mask"] = self._for_layers(step, mask)
                self.live = live_columns(step) if cache.method.observes_attention else None
            expected = None
        else:
            new, past = self._split(mask, fed)
            if past is not None:
                cache.drop_padding(past)
            if self.generated:
                cache.check_room(self.count)
            else:
                self._start_turn(new, fed)
            expected = self._expected_positions(new)
            self._check_positions(kwargs.get("position_ids"), expected, new)
            self.live = None
            if new is not None or cache.ragged:
                new = new if new is not None else torch.ones_like(expected, dtype=torch.bool)
                self.live = torch.cat([cache.live(), new], dim=1)
            cache.place(new, self.count)
            kwargs["attention_mask"] = None if self.live is None else self._for_layers(self.live, mask)
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = self._expected_positions(None) if expected is None else expected
        self.positions = kwargs["position_ids"]
        if cache.method.observes_attention:
            kwargs["attention_observer"] = self._observe
        return kwargs

    @torch.no_grad()
    def after(self, hidden: torch.Tensor) -> None:
        """Commit the pass. hidden: [batch, new tokens, hidden size].

        Raises:
            UnsupportedError: the first pass has shown that the model does not cache or attend as dynts needs it.
        """
        if not self.cache.occupancy.columns:
            try:
                check_first_pass(self.model, self.cache, self.shown)
            except UnsupportedError:
                self.abandon()
                raise
        tokens = self.kwargs.get("input_ids")
        if tokens is None:
            tokens = torch.full((self.batch, self.count), -1, device=self.device)
        self.cache.commit(_own(tokens.to(self.device)), _own(self.positions.to(self.device)), hidden)

    def abandon(self) -> None:
        """Forget a pass that failed; its keys lie in slots that are not in use."""
        self.cache.occupancy.placed = 0

    @torch.no_grad()
    def _observe(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None
    ) -> None:
        cache = self.cache
        if layer in cache.full_layers:
            self.shown.append((layer, key.shape))
            live = None if self.live is None else self.live.to(query.device)
            how = {"scaling": scaling, "softcap": softcap, "live": live, "generated": self.generated}
            cache.method.observe_attention(cache.full_layers[layer], query, key, **how)

    def _start_turn(self, new: torch.Tensor | None, fed: int) -> None:
        """Tell the cache of a question, whole even if this is only its first chunk."""
        cache = self.cache
        if cache.announced_tokens is not None:
            cache.start_turn(cache.announced_tokens, cache.announced_end - fed)
            cache.announced_tokens = None
        elif fed >= cache.turn_end:
            counts = [self.count] * self.batch if new is None else new.sum(dim=1).tolist()
            cache.start_turn(counts, self.count)

    def _split(self, mask: torch.Tensor | None, fed: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The mask of the new tokens (None: no padding) and of the columns fed before (None: not given)."""
        if mask is None:
            return None, None
        mask = mask.to(device=self.device, dtype=torch.bool)
        if mask.shape[1] not in (self.count, fed + self.count):
            raise DyntsError(
                f"attention_mask has {mask.shape[1]} columns; expected {self.count} for the new tokens, "
                f"or {fed + self.count} with those in the cache"
            )
        new = mask[:, -self.count :]
        past = mask[:, :fed] if fed and mask.shape[1] == fed + self.count else None
        return (None if bool(new.all()) else new), past

    def _expected_positions(self, new: torch.Tensor | None) -> torch.Tensor:
        """int64 [batch, new tokens]: each row goes on counting its own tokens."""
        start = torch.tensor(self.cache.next_positions or [0] * self.batch, device=self.device).unsqueeze(1)
        if new is None:
            return start + torch.arange(self.count, device=self.device)
        return start + (new.long().cumsum(dim=1) - 1).clamp(min=0)

    def _check_positions(self, given: torch.Tensor | None, expected: torch.Tensor, new: torch.Tensor | None) -> None:
        if given is None:
            return
        wrong = given != expected if new is None else (given != expected) & new
        if given.ndim != 2 or bool(wrong.any()):
            raise UnsupportedError(
                "position_ids must go on counting each row's tokens: leave them to dynts, "
                "and cover the whole conversation with attention_mask when continuing one"
            )

    def _for_layers(self, slots: torch.Tensor, logical: torch.Tensor | None) -> Any:
        """A mask over slots for full-attention layers; in hybrid models, one over columns for the others."""
        config = self.model.config
        if len(self.cache.full_layers) == len(self.cache.layers):
            return slots
        if logical is None or logical.shape[1] != self.cache.occupancy.columns + self.count:
            raise UnsupportedError(
                "sliding-window layers need an attention_mask that covers the whole conversation once rows differ in length"
            )
        shape = torch.empty((self.batch, self.count, 0), dtype=self.masks.dtype, device=self.device)
        common: dict[str, Any] = {
            "config": config,
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


def live_columns(mask: torch.Tensor) -> torch.Tensor:
    """bool [batch, keys] from a decode-step mask in any form."""
    flat = mask if mask.ndim == 2 else mask[:, 0, 0]
    return flat if flat.dtype == torch.bool else flat == 0
