"""A model that writes what a test wants: all of it runs, only the logits are replaced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.interface import CACHE


@contextmanager
def writes(model: PreTrainedModel, *texts: Sequence[int]) -> Iterator[None]:
    """Inside this context each prompt, read alone, is followed by the next of these tokens, the last one for ever."""
    coming = cycle(texts)
    text: Sequence[int] = []
    step = 0

    def begin(decoder: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal text, step
        cache, tokens = kwargs[CACHE], kwargs["input_ids"].shape[1]
        turn, fed = getattr(cache, "announced", None), cache.get_seq_length()
        if (turn is None and tokens == 1) or (turn is not None and fed >= turn.end):
            step += 1
        elif turn is None or fed + tokens == turn.end:  # read as a whole, or its last piece
            text, step = next(coming), 0

    def choose(head: torch.nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor:
        assert len(logits) == 1
        wanted = torch.full_like(logits, -1e4)
        wanted[:, -1, text[min(step, len(text) - 1)]] = 1e4
        return wanted

    head: Any = model.get_output_embeddings()
    handles = [
        model.get_decoder().register_forward_pre_hook(begin, with_kwargs=True),
        head.register_forward_hook(choose),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
