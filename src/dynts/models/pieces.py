"""How much of a large intermediate result to hold at a time."""

import torch


def piece_bytes(device: torch.device) -> int:
    """Return how large a piece of an intermediate result should be, in bytes.

    On a CPU it should stay in the cache from one pass over it to the next; elsewhere, where memory is fast and the
    start of a kernel is not, it need only be bounded.

    Args:
        device: what computes.
    """
    return 1 << 24 if device.type == "cpu" else 1 << 28
