"""cuDNN kept out of attention for a while: it plans on the host, anew for every number of keys that it has not seen.

torch's own scope, `torch.nn.attention.sdpa_kernel`, chooses for the whole process, brings back kernels that the user
has switched off, and leaves them switched off for good where scopes of two threads overlap (torch 2.13).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.backends.cuda import cudnn_sdp_enabled, enable_cudnn_sdp

_LOCK = threading.Lock()
_inside: list[bool] = []
"""A value for each context that is open: whether cuDNN was allowed before the first of them."""


@contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """Keep cuDNN out of `scaled_dot_product_attention` inside this context, and of other threads meanwhile.

    Nothing else changes, and afterwards it is as it was, however contexts of several threads overlap.

    Args:
        device: of the model; elsewhere than on CUDA nothing is done.
    """
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        _inside.append(_inside[0] if _inside else cudnn_sdp_enabled())
        enable_cudnn_sdp(False)
    try:
        yield
    finally:
        with _LOCK:
            before = _inside.pop()
            if not _inside:
                enable_cudnn_sdp(before)
