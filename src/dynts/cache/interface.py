"""What transformers asks of a cache: the name it goes by, and operations that a budget rules out."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from dynts.errors import UnsupportedError

_OLD = "past_key_values"

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else _OLD
"""The installed transformers' own name: of forward passes, generate() and mask functions, and of the field in their outputs."""


def cache_keyword(arguments: Mapping[str, Any]) -> str:
    """The name under which arguments hold a cache: if both, the one that transformers listens to; `CACHE` if neither."""
    return _OLD if _OLD in arguments and CACHE not in arguments else CACHE


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache that a caller passes to a forward pass or generate(), under either name, or None."""
    return arguments.get(cache_keyword(arguments))


class FixedRowsCache(Cache):
    """Refuses what transformers may ask of a cache and eviction makes impossible, before any layer is touched."""

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: an evicted token cannot be brought back."""
        raise UnsupportedError("a compressed cache cannot be cropped: evicted tokens cannot be brought back")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Refused: beams would have to share one set of evicted tokens."""
        raise UnsupportedError("a compressed cache does not do beam search: use num_beams=1")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused: the rows are fixed by the first forward pass."""
        raise UnsupportedError("the rows of a compressed cache cannot be repeated: repeat the inputs instead")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refused: the rows are fixed by the first forward pass."""
        raise UnsupportedError("the rows of a compressed cache cannot be selected: start a new cache")

    def reset(self) -> None:
        """Refused: start a new cache instead."""
        raise UnsupportedError("a compressed cache cannot be reset: start a new one")
