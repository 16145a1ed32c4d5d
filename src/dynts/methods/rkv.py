"""R-KV: attention from the last queries, less the redundancy among keys (arXiv 2505.24133)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.errors import DyntsError
from dynts.methods.attention import KeyMasks, ObservationWindowMethod
from dynts.models.attention import Softmax, attention_logits, softmax_over_keys
from dynts.models.pieces import piece_bytes

SIMILAR = 0.5
BLOCK = 64
"""Keys of which first only the largest similarity is looked at."""


@dataclass
class RKV(ObservationWindowMethod):
    """`mix * A - (1 - mix) * R` per KV head: A is attention as in SnapKV, R how much a key repeats others.

    Args:
        mix: the paper's lambda.
    """

    name: ClassVar[str] = "rkv"
    window: int = 8
    mix: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.mix, int | float) or not 0.0 <= self.mix <= 1.0:
            raise DyntsError(f"mix must lie between 0 and 1, got {self.mix!r}")

    def score_keys(self, query: torch.Tensor, key: torch.Tensor, masks: KeyMasks, softmax: Softmax) -> torch.Tensor:
        """Return attention less redundancy. Arguments and result as in the base class."""
        logits, sinks = attention_logits(query, key, softmax).amax(dim=2), softmax.grouped_sinks(key.shape[1])
        if sinks is not None:
            # a column of the logits as those of the keys are, and so its maximum over the group counts too
            sinks = sinks.amax(dim=1)
        hidden = ~masks.candidates[:, None, None]
        weights = softmax_over_keys(logits.masked_fill(hidden, float("-inf")), sinks).masked_fill(hidden, 0.0)
        asking = masks.asking[:, None, :, None]
        attention = self.pool((weights * asking).sum(dim=2) / asking.sum(dim=2).clamp(min=1))
        return self.mix * attention - (1 - self.mix) * redundancy(key, masks.live)


def redundancy(key: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return how much each key repeats others: softmax over keys of the mean cosine similarity to all keys.

    For each key the last one that is similar to it (above `SIMILAR`) is exempted, so that the latest of a group of
    repetitions is not held against itself.

    Args:
        key: [batch, KV heads, slots, head size].
        live: bool [batch, slots].

    Returns:
        float32 [batch, KV heads, slots].
    """
    unit = (torch.nn.functional.normalize(key.float(), dim=-1) * live[:, None, :, None]).flatten(0, 1)
    last, similarity = _last_similar(unit.to(key.dtype))
    # a key's similarities to all keys add up to its product with their sum: no matrix is needed for that
    total = (unit @ unit.sum(dim=1).unsqueeze(2)).squeeze(2) - unit.square().sum(dim=-1)
    # unlike `scatter_add_` this adds in the same order every time on a GPU too
    each = torch.arange(len(unit), device=unit.device).unsqueeze(1)
    total.index_put_((each, last), -similarity.float(), accumulate=True)
    mean = total.view(key.shape[:3]) / live.sum(dim=1)[:, None, None]
    return mean.masked_fill(~live[:, None], float("-inf")).softmax(dim=-1)


def _last_similar(unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the last other key that is similar to each key, and how similar it is: zero where none is.

    The similarity matrix is built a few rows at a time, in the dtype of the keys, written once and read once.

    Args:
        unit: normalised keys, [heads, keys, head size].

    Returns:
        int64 and the dtype of the keys, both [heads, keys].
    """
    heads, count, _ = unit.shape
    # backwards, as a search finds the first of several
    keys = torch.nn.functional.pad(unit.flip(1), (0, 0, 0, -count % BLOCK))
    rows = max(1, piece_bytes(unit.device) // (heads * keys.shape[1] * unit.element_size()))
    places, values = [], []
    for start in range(0, count, rows):
        similarity = keys[:, start : min(start + rows, count)] @ keys.mT
        similarity.diagonal(start, -2, -1).zero_()
        blocks = similarity.unflatten(-1, (-1, BLOCK))
        block = _first_above(blocks.amax(dim=-1))
        within = blocks.gather(-2, block.unsqueeze(-1).expand(-1, -1, -1, BLOCK)).squeeze(-2)
        place = _first_above(within)
        places.append(block * BLOCK + place)
        values.append(within.gather(-1, place))
    last, value = (torch.cat(parts, dim=1).squeeze(-1).flip(1) for parts in (places, values))
    return count - 1 - last, value.where(value > SIMILAR, 0.0)


def _first_above(similarity: torch.Tensor) -> torch.Tensor:
    """Return the place of the first value above `SIMILAR`, zero if there is none: int64 [..., 1] for [..., values]."""
    return (similarity > SIMILAR).to(torch.uint8).argmax(dim=-1, keepdim=True)
