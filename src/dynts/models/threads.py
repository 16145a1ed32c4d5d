"""How many threads a narrow model computes with on a CPU."""

import os

import torch

NARROW = 256
"""Hidden size up to which one thread is taken."""


def fit_threads(hidden_size: int) -> None:
    """Make this process compute with one thread, if what it computes with is narrow.

    Threads wait for one another after each operation. Those of a narrow model take microseconds: a second thread gains
    little on an idle machine, and on a busy one, where it is not always scheduled, every operation waits for it.
    `OMP_NUM_THREADS`, where it is set, is the user's word.

    Args:
        hidden_size: d, of the model or of the hidden states that a predictor reads.
    """
    if hidden_size <= NARROW and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
