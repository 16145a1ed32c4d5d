"""TriAttention: keep the keys that the mean query will look for, seen as a trigonometric series (arXiv 2604.04921)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from dynts.cache.method import Surroundings
from dynts.cache.slots import Slots
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods.calibration import Calibration
from dynts.methods.heads import HeadwiseMethod

DISTANCES = tuple(2**power for power in range(17))
"""How far ahead the queries are for which keys are scored, in tokens."""


@dataclass
class TriAttention(HeadwiseMethod):
    """Expected attention of the queries to come, from the means of a model's queries before the rotary embedding.

    With the pairs of dimensions that the rotary embedding turns as complex numbers, m the mean of a head's queries, l
    the mean of their lengths, k a key at position p, both not turned yet, w a pair's frequency and t the tokens
    read so far, a query head scores a key

        mean over d = 1, 2, 4, ... 65536 of sum over pairs of Re(m conj(k) exp(i w (t + d - p))) + (l - |m|) |k|

    and the second power of the embedding's scaling times that where it has one. Each query head's scores are
    brought to mean 0 and standard deviation 1 over the tokens that compete, and a KV head takes the maximum over its
    query heads. "native" keeps each layer and KV head its own tokens (the authors' `per_layer_perhead_pruning`).

    Args:
        calibration: the file that `dynts calibrate` writes for the model; it is read here, once.
    """

    name: ClassVar[str] = "triattention"
    reads_cache: ClassVar[bool] = True
    protect_question: bool = True
    calibration: str | Path = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.calibration:
            raise DyntsError("TriAttention needs calibration=, the file that `dynts calibrate` writes for the model")
        self.calibration = str(self.calibration)  # manifests write settings as JSON
        self.statistics = Calibration.load(self.calibration)

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse another model than that of the calibration. Raises as in `Method`."""
        self.statistics.check_model(model)

    def begin(self, surroundings: Surroundings) -> None:
        """Refuse statistics of other layers or heads.

        Raises:
            UnsupportedError: they are of other layers or heads.
        """
        layers, heads, _ = self.statistics.mean.shape
        if layers != len(self.layers) or heads % self.all_heads:
            raise UnsupportedError(
                f"{self.calibration} has {layers} layers of {heads} query heads, this model has {len(self.layers)} "
                f"full-attention layers of {self.all_heads} KV heads: make another with `dynts calibrate`"
            )

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the expected attention."""
        competing = slots.live[:, None] & ~slots.question if self.protect_question else slots.live[:, None]
        competing = competing.expand(slots.columns.shape)
        queries, surplus = self._expected(slots)

        def score_layer(layer: int) -> torch.Tensor:
            key = slots.keys(layer).float()
            counted = competing[layer if len(competing) > 1 else 0].to(key.device)[:, :, None]
            pairs = torch.stack(key.chunk(2, dim=-1)).square().sum(dim=0).sqrt()
            # [batch, KV heads, query heads of each, slots]
            products = queries[layer].to(key.device) @ key.mT + surplus[layer].to(key.device) @ pairs.mT
            count = counted.sum(dim=-1, keepdim=True)
            centred = products - (products * counted).sum(dim=-1, keepdim=True) / count
            deviation = ((centred.square() * counted).sum(dim=-1, keepdim=True) / count).sqrt()
            return (centred / deviation.clamp(min=1e-6)).amax(dim=2)

        return self.combine(score_layer, slots.columns.device)

    def _expected(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what cached keys are multiplied with, which have been turned already, and their pairs' lengths.

        Returns:
            float32 [layers, batch, KV heads, query heads of each, head size], and [layers, 1, KV heads, query heads of
            each, pairs].
        """
        known = self.statistics
        # phases grow with the position, so that float32 would round them
        read = (slots.of_rows(slots.history.positions()).amax(dim=1) + 1).cpu().double()
        ahead = read[:, None] + torch.tensor(DISTANCES)
        phases = (ahead[..., None] * known.frequencies.double()).unsqueeze(0)
        turned = torch.polar(torch.ones_like(phases), phases).mean(dim=2)
        grouped = known.mean.unflatten(1, (self.all_heads, -1))[:, self.own_heads]
        length = known.length.unflatten(1, (self.all_heads, -1))[:, self.own_heads]
        # keys bring one power of the scaling along
        series = known.scaling * grouped[:, None] * turned[:, :, None, None]
        queries = torch.cat([series.real, series.imag], dim=-1).float()
        return queries, (known.scaling * (length - grouped.abs()))[:, None]
