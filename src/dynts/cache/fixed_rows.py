"""A cache whose past cannot be rewritten."""

import torch
from transformers import Cache

from dynts.errors import UnsupportedError


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
