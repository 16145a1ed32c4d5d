"""Decode steps of one fixed shape, compiled."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import cache_in
from dynts.models.cudnn import without_cudnn

_ON_CPU = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    # a table and a line for each matrix otherwise, on the user's terminal; older versions of torch lack the second
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
"""Weights as constants, packed for inductor's own kernels: BLAS reads them at a third of the speed in thin products."""


@contextmanager
def compiled_steps(model: PreTrainedModel) -> Iterator[None]:
    """Let the decoder's steps on a cache of fixed shape run through `torch.compile` inside this context.

    On CUDA a step is captured as a CUDA graph ("reduce-overhead"). On CPUs weights are packed once for thin products,
    which takes as much memory again as the weights; weights that change afterwards are not noticed.
    """
    # these take seconds to import
    from torch._C._dynamo.eval_frame import reset_code
    from torch._inductor import config as inductor
    from torch._inductor.codecache import PyCodeCache

    decoder: Any = model.get_decoder()
    head: Any = model.get_output_embeddings()
    on_cpu = model.device.type == "cpu"
    mode = None if on_cpu else "reduce-overhead"
    plain, plain_head = decoder.forward, head.forward
    own = [_of_its_own(plain), _of_its_own(plain_head)]
    step, step_head = (_quiet(torch.compile(function, dynamic=False, mode=mode)) for function in own)

    stepped = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal stepped
        cache = cache_in(kwargs)
        running = cache.occupancy.step if isinstance(cache, BudgetCache) else None
        stepped = running is not None and running.slots is not None and cache.occupancy.fixed_shape
        if not stepped:
            return plain(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        with without_cudnn(model.device):
            output = step(*args, **kwargs)
        # a method may keep the hidden state, which the next replay of a CUDA graph would overwrite
        output["last_hidden_state"] = output["last_hidden_state"].clone()
        return output

    def forward_head(hidden: torch.Tensor) -> torch.Tensor:
        # not for the last tokens of prompts, which may be of any number of rows
        return step_head(hidden.contiguous()) if stepped else plain_head(hidden)

    loaded = len(PyCodeCache.modules)
    decoder.forward, head.forward = forward, forward_head
    try:
        # weights become constants only if the configuration says so while a step is traced: `options` come too late
        known = {name: value for name, value in _ON_CPU.items() if hasattr(inductor, name)}
        with inductor.patch(known) if on_cpu else nullcontext():
            yield
    finally:
        del decoder.forward, head.forward
        # otherwise the packed weights would stay in memory: inductor and dynamo both keep what they made
        for module in PyCodeCache.modules[loaded:]:
            sys.modules.pop(module.__name__, None)
        del PyCodeCache.modules[loaded:]
        for function in own:
            reset_code(function.__code__)


def _quiet(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same step without what inductor warns of while it compiles and no user can change."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
            return step(*args, **kwargs)

    return run


def _of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function with a code object of its own.

    torch.compile remembers its results by code object: what a context forgets at its end, because the weights may
    change, must not be another's.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
