"""How the decode steps of a context run: plain, recorded or compiled."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.method import Method
from dynts.decode.compiled import compiled_steps
from dynts.decode.forward import ForwardPass
from dynts.decode.recorded import RecordedSteps, can_record
from dynts.models.cudnn import without_cudnn


@contextmanager
def decode_steps(
    model: PreTrainedModel,
    method: Method,
    compile: bool | None,
    running_in: Callable[[Mapping[str, Any]], ForwardPass | None],
) -> Iterator[RecordedSteps | None]:
    """Let the decoder's steps run as `dynts.compress` was told to, inside this context.

    Args:
        model: the model.
        method: by which it decodes.
        compile: see `dynts.compress`.
        running_in: finds the forward pass that the decoder is called for, by its keyword arguments.

    Yields:
        What records steps, which lends memory to new caches; None if none are recorded.
    """
    if compile:
        with compiled_steps(model):
            yield None
        return
    decoder = model.get_decoder()
    plain: Callable[..., Any] = decoder.forward

    def step(*args: Any, **kwargs: Any) -> Any:
        with without_cudnn(model.device):
            return plain(*args, **kwargs)

    recorded = RecordedSteps(model, step) if compile is None and can_record(model, method) else None
    if recorded is None and model.device.type != "cuda":
        yield None
        return

    @functools.wraps(plain)  # its parameters tell what its layers get
    def forward(*args: Any, **kwargs: Any) -> Any:
        running = running_in(kwargs)
        if running is None or running.step.kind != "generated":
            return plain(*args, **kwargs)
        return step(*args, **kwargs) if recorded is None or not running.fixed else recorded.step(running)

    before = vars(decoder).get("forward")
    decoder.forward = forward
    try:
        yield recorded
    finally:
        set_attribute(decoder, "forward", before)


def set_attribute(module: torch.nn.Module, name: str, value: Any) -> None:
    """Put an attribute of the instance back as it was.

    Args:
        module: the instance.
        name: of the attribute.
        value: what it was; None if the instance had none.
    """
    if value is None:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = value
