"""Decode steps of one fixed shape, compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.cache import BudgetCache


@contextmanager
def compiled_steps(model: PreTrainedModel) -> Iterator[None]:
    """Inside this context the decoder's steps on a cache of fixed shape run through `torch.compile`; all else as before.

    On CUDA a step is captured as a CUDA graph ("reduce-overhead"). On CPUs weights are packed once for thin products, which
    takes as much memory again as the weights; weights that change afterwards are not noticed.
    """
    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    if model.device.type == "cpu":
        options: dict[str, Any] = {"options": {"freezing": True}}
    else:
        options = {"mode": "reduce-overhead"}
    plain, plain_head = decoder.forward, head.forward
    step = torch.compile(plain, dynamic=False, **options)
    step_head = torch.compile(plain_head, dynamic=False, **options)

    def forward(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if not (isinstance(cache, BudgetCache) and cache.occupancy.fixed_shape and cache.occupancy.slots is not None):
            return plain(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        output = step(*args, **kwargs)
        # a method may keep the hidden state, which the next replay of a CUDA graph would overwrite
        output["last_hidden_state"] = output["last_hidden_state"].clone()
        return output

    def forward_head(hidden: torch.Tensor) -> torch.Tensor:
        # the last token of a prompt is a view, with strides of its own
        return step_head(hidden.contiguous()) if hidden.shape[1] == 1 else plain_head(hidden)

    decoder.forward, head.forward = forward, forward_head
    try:
        yield
    finally:
        del decoder.forward, head.forward
