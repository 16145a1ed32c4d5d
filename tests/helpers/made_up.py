"""Made-up shards whose label is a function of the hidden state, and of nothing else."""

from pathlib import Path

import torch

from dynts.training.shards import Shard, ShardFolder


def make_up(
    path: Path, traces: int, tokens: int = 40, size: int = 8, first: int = 0, ragged: bool = False, **settings: object
) -> ShardFolder:
    """A folder of shards.

    Args:
        path: of the folder.
        traces: how many.
        tokens: of each.
        size: of the hidden states.
        first: number of the first trace; traces of one number are the same.
        ragged: every trace is a token longer than the one before.
        settings: others than those of the manifest.
    """
    known = {
        "labels": ["answer"],
        "fingerprint": {"hidden_size": size},
        "model": "made up",
        "future_window": None,
        "traces_sha256": "",
        "keep_incorrect": False,
        "think_markers": None,
    }
    facts = {"indices": list(range(traces)), "dropped": {}, "traces_file": "none"}
    folder = ShardFolder.create(path, {**known, **settings}, facts)
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for index in range(traces):
        number = first + index
        generator = torch.Generator().manual_seed(number + 1)
        count = tokens + index * ragged
        hidden = torch.randn(count, size, generator=generator)
        label = torch.sigmoid(2 * hidden @ direction) * 1e-4
        ids = torch.randint(9, (count,), generator=generator)
        info = {
            "id": str(number),
            "question": str(number),
            "correct": "true",
            "parity": "odd" if number % 2 else "even",
        }
        folder.write(index, Shard(hidden, torch.arange(count), ids, {"answer": label}, info))
    return folder
