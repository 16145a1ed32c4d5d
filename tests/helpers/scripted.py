"""A model that writes what a test wants: all of it runs, only the logits are replaced."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def writes(model: PreTrainedModel, *rows: Sequence[int]) -> Iterator[None]:
    """Inside this context the rows of a batch, in this order, get these tokens, and then the last one for ever."""
    step = 0

    def begin(decoder: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal step
        step = 0 if kwargs["input_ids"].shape[1] > 1 else step + 1

    def choose(head: torch.nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor([row[min(step, len(row) - 1)] for row in rows], device=logits.device)
        wanted = torch.full_like(logits, -1e4)
        wanted[:, -1] = wanted[:, -1].scatter(1, chosen[:, None], 1e4)
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
