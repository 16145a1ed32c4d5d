"""What a predictor checkpoint says about itself."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from dynts.chat.markers import ThinkMarkers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictorConfig:
    """Settings and provenance of an `ImportancePredictor`; saved as `config.json`.

    Every field has a default, so a checkpoint stays readable when fields come or go.

    Args:
        hidden_size: d, the size of the base model's hidden states.
        layers: full-attention layers that have scores of their own.
        kv_heads: KV heads of a layer that have; with 1 layer and 1 head there is one score for the whole model.
        label: which importance it predicts, one of `dynts.predictor.label.LABELS`.
        all_tokens: whether it was trained on the tokens of question and answer too, not only on those of the thinking.
        transform: how the labels were scaled for training; only the order of the scores has a meaning.
        future_window: the tokens that the future label leaves out; None for the answer label.
        base_model: name of the model whose hidden states it reads.
        fingerprint: what `dynts.predictor.fingerprint.fingerprint` says of that model; empty skips the check.
        think_start: token ids of the opening think marker; empty if unknown.
        think_end: token ids of the closing think marker; empty if unknown.
        training: the training data and settings.
        metrics: held-out metrics, those of the trivial predictors included.
        dynts_version: the version that trained it.
    """

    hidden_size: int = 0
    layers: int = 1
    kv_heads: int = 1
    label: str = "answer"
    all_tokens: bool = False
    transform: str = "rank"
    future_window: int | None = None
    base_model: str = ""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    think_start: list[int] = field(default_factory=list)
    think_end: list[int] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    dynts_version: str = ""

    @property
    def native(self) -> bool:
        """Return whether each layer and KV head has a score of its own."""
        return self.layers * self.kv_heads > 1

    @property
    def markers(self) -> ThinkMarkers | None:
        """Return the think markers, or None if unknown."""
        if not self.think_start or not self.think_end:
            return None
        return ThinkMarkers(tuple(self.think_start), tuple(self.think_end))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON; fields of a newer version are ignored with a warning."""
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(values) - known):
            logger.warning(
                "predictor config: ignoring unknown fields %s, written by dynts %s",
                ", ".join(unknown),
                values.get("dynts_version") or "of another version",
            )
        return cls(**{name: value for name, value in values.items() if name in known})
