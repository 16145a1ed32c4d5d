"""Decoding engines to measure dynts against: how the authors' release, kvpress and R-KV evict, and a cache without a
policy.

Written here for `decode_speed.py`; nobody should decode with them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from dynts.bench.engines import TimedEngine, TimedTransformers
from dynts.bench.machine import seconds
from dynts.config import CompressionConfig
from dynts.models.attention import observed_attention


class GatherEngine(TimedTransformers):
    """transformers' cache, which concatenates every step; evicts by gathering the kept tokens of each layer.

    Scoring costs nothing here. The authors' release decodes with eager attention, kvpress and R-KV with sdpa.
    """

    def __init__(self, name: str, model: PreTrainedModel, attention: str, schedule: CompressionConfig) -> None:
        super().__init__(name, model, attention)
        self.schedule = schedule

    def compaction(self, prompt: int, batch: int) -> dict[str, float]:
        """Seconds of one gather of all layers."""
        assert self.schedule is not None
        cache = self.new_cache()
        self.fill(cache, prompt, self.schedule.budget, batch)
        kept = (
            torch.randperm(self.schedule.budget, device=self.device)[: self.schedule.kept_tokens(prompt)].sort().values
        )

        def gather() -> None:
            for layer in cache.layers:
                size = layer.keys.shape[3]
                index = kept[None, None, :, None].expand(*layer.keys.shape[:2], -1, size)
                layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)

        return {"moving": seconds(gather, self.device)}


class HeldLayer(CacheLayerMixin):
    """Slots of which the last one in use is written at every step, so that the length never changes."""

    is_sliding = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first call fills the slots, later ones write the last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states.clone(), value_states.clone()
        else:
            self.keys[:, :, -1:], self.values[:, :, -1:] = key_states, value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a query faces, and the offset of the first."""
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """Slots."""
        return self.keys.shape[2] if self.is_initialized else 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class HeldEngine(TimedEngine):
    """A plain cache held at a length without hooks, scores or evictions: what dynts' own work is measured against.

    Its schedule only says which lengths occur.
    """

    @contextmanager
    def running(self) -> Iterator[None]:
        """With the same attention function as dynts."""
        with observed_attention(self.model):
            yield

    def new_cache(self, tokens: int | None = None) -> Cache:
        """An empty cache."""
        return Cache(layers=[HeldLayer() for _ in DynamicCache(config=self.model.config).layers])

    def fill(self, cache: Cache, prompt: int, tokens: int, batch: int) -> None:
        """Start again at a length: the step's own token has a slot already."""
        states = self._states(batch, tokens + 1)
        for index in range(len(cache.layers)):
            cache.layers[index] = HeldLayer()
            cache.update(states, states, index)

    def kv_bytes(self, cache: Any) -> int:
        """Of all layers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    def prefill(self, prompt: int, batch: int) -> float:
        """Not measured: prefilling is dynts' own and no part of the comparison."""
        return 0.0
