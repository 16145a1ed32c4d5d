"""What is asked of a cache: the name it goes by, what it tells, what a budget rules out. Nothing here changes it."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin
from transformers.masking_utils import create_causal_mask

from dynts.cache.layer import BudgetLayer, Occupancy, SlidingLayer
from dynts.cache.states import BudgetStateLayer, SlidingStateLayer, StateLayer
from dynts.errors import DyntsError, UnsupportedError
from dynts.models.shape import FORGETFUL, cached_layers, full_attention_layers

_OLD = "past_key_values"

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else _OLD
"""The installed transformers' own name, in forward passes, generate() and mask functions, and in their outputs."""


def cache_keyword(arguments: Mapping[str, Any]) -> str:
    """Return the name under which arguments hold a cache: of both, what transformers listens to; `CACHE` if neither."""
    return _OLD if _OLD in arguments and CACHE not in arguments else CACHE


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the cache that a caller passes to a forward pass or generate(), under either name, or None."""
    return arguments.get(cache_keyword(arguments))


class FixedRowsCache(Cache):
    """A cache whose rows are fixed by the first forward pass, as it looks from outside.

    It refuses what transformers may ask of a cache and eviction makes impossible, before any layer is touched.

    Args:
        model_config: configuration of the decoder.
        occupancy: what the slots hold.

    Attributes:
        full_layers: group of each full-attention layer, by the layer's index.
        budget_layers: these layers.
        sliding_layers: those with a sliding window.
        state_layers: those with a state of fixed size, some of which are among the above.
        one_at_a_time: whether the model takes a sequence's later tokens one at a time only.
    """

    def __init__(self, model_config: PreTrainedConfig, occupancy: Occupancy) -> None:
        self.occupancy = occupancy
        self.full_layers = {layer: group for group, layer in enumerate(full_attention_layers(model_config))}
        super().__init__(layers=[_layer_like(layer, occupancy) for layer in cached_layers(model_config)])
        self.budget_layers = [layer for layer in self.layers if isinstance(layer, BudgetLayer)]
        self.sliding_layers = [layer for layer in self.layers if isinstance(layer, SlidingLayer)]
        self.state_layers = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        self.one_at_a_time = model_config.model_type in FORGETFUL

    @property
    def batch(self) -> int:
        """Rows, 0 before the first forward pass."""
        return self.occupancy.contents.batch

    @property
    def lengths(self) -> tuple[int, ...]:
        """Cached tokens of each row."""
        return self.occupancy.contents.lengths

    @property
    def next_positions(self) -> tuple[int, ...]:
        """Logical position of each row's next token."""
        return self.occupancy.contents.next_positions

    @property
    def questions(self) -> tuple[int, ...]:
        """Question tokens that each row was fed, all turns together."""
        return self.occupancy.contents.questions

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all allocated keys, values and states, sliding-window layers included."""
        return sum(held for held, _ in self._allocated())

    @property
    def bytes_per_row(self) -> int:
        """Bytes of keys, values and states, each over the rows that it has room for."""
        return sum(held // rows for held, rows in self._allocated() if rows)

    def _allocated(self) -> Iterator[tuple[int, int]]:
        """Yield the bytes of each allocated tensor, and the rows that it has room for."""
        for window in self.sliding_layers:
            for tensor in (window.keys, window.values):
                if tensor is not None:
                    yield tensor.untyped_storage().nbytes(), len(tensor)  # a view keeps all of its storage
        for state in self.state_layers:
            yield from ((tensor.nbytes, len(tensor)) for tensor in state.tensors())
        for layer in self.budget_layers:
            if layer.is_initialized:
                yield from ((slots.nbytes, len(slots)) for slots in layer.memory)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one layer's new keys and values, and return those to attend to.

        Args:
            key_states: [batch, KV heads, new tokens, head size].
            value_states: likewise.
            layer_idx: index of the decoder layer.
            args: for transformers' own layers.
            kwargs: likewise.

        Raises:
            DyntsError: nobody has planned for these tokens, as a dynts context does for every forward pass.
        """
        step = self.occupancy.step
        if step is None or step.tokens != key_states.shape[2]:
            raise DyntsError(
                "this cache evicts tokens, and works only within a dynts.compress context of the model that filled it: "
                "enter one, or start without this cache"
            )
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return where queries stand for causal masks: the next slot, or the next column in sliding-window layers."""
        windowed = isinstance(self.layers[layer_idx], SlidingLayer)
        return self.occupancy.columns if windowed else self.occupancy.length

    def live(self) -> torch.Tensor:
        """Return which of the slots in use hold a token: bool [batch, slots]."""
        return self.occupancy.contents.live()

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: an evicted token cannot be brought back."""
        raise UnsupportedError("a compressed cache cannot be cropped: evicted tokens cannot be brought back")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Refuse: beams would have to share one set of evicted tokens."""
        raise UnsupportedError("a compressed cache does not do beam search: use num_beams=1")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse: the rows are fixed by the first forward pass."""
        raise UnsupportedError("the rows of a compressed cache cannot be repeated: repeat the inputs instead")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refuse: the rows are fixed by the first forward pass."""
        raise UnsupportedError("the rows of a compressed cache cannot be selected: start a new cache")

    def reset(self) -> None:
        """Refuse: start a new cache instead."""
        raise UnsupportedError("a compressed cache cannot be reset: start a new one")


def _layer_like(layer: Any, occupancy: Occupancy) -> Any:
    """Return the layer that caches what one of transformers would.

    Args:
        layer: of transformers, empty. One that caches nothing stays.
        occupancy: what the slots hold.
    """
    states = layer.number_of_states if isinstance(layer, LinearAttentionCacheLayerMixin) else 0
    if isinstance(layer, DynamicSlidingWindowLayer):
        window = layer.sliding_window
        return SlidingStateLayer(occupancy, window, states) if states else SlidingLayer(occupancy, window)
    if isinstance(layer, DynamicLayer):
        return BudgetStateLayer(occupancy, states) if states else BudgetLayer(occupancy)
    return StateLayer(occupancy, states) if states else layer
