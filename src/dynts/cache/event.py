"""What a cache tells its listener."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class CompactionEvent:
    """Told to the cache's listener after every compaction.

    Attributes:
        step: tokens generated and fed back since the latest question (0: room was made for a new user turn).
        before: slots in use before.
        after: slots in use after.
        positions: int64, the logical positions that survived, -1 for no token: [batch, after], or
            [layers, batch, KV heads, after] with native granularity. None unless the cache records.
    """

    step: int
    before: int
    after: int
    positions: torch.Tensor | None
