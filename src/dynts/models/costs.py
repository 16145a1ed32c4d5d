"""What decoding costs: bytes to read and operations to do, for a step and for a generation; what a predictor adds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from dynts.models.shape import ModelShape

PREDICTOR_DTYPE_BYTES = 4
"""A predictor is loaded in float32, whatever the model's dtype."""


@dataclass(frozen=True, slots=True)
class PredictorCost:
    """An importance predictor `d -> 2d -> d/2 -> 1` (arXiv 2601.18383, section 4.1).

    Attributes:
        parameters: 3 d^2 + d / 2.
        bytes: of its weights.
        flops: of one token's score, 6 d^2 + d.
    """

    parameters: int
    bytes: int
    flops: int

    @classmethod
    def of(cls, hidden_size: int) -> "PredictorCost":
        """Return what the predictor of a model with this hidden size costs."""
        half = hidden_size // 2
        parameters = 2 * hidden_size**2 + 2 * hidden_size * half + half
        return cls(parameters, parameters * PREDICTOR_DTYPE_BYTES, 2 * parameters)


@dataclass(frozen=True, slots=True)
class StepCost:
    """A decode step of one token a row.

    Attributes:
        weight_bytes: read once a step, whatever the batch.
        weight_flops: of a row, outside attention.
        token_bytes: keys and values of one cached token of one row, all layers.
        token_flops: attention of one row to one cached token, all layers.
        state_bytes: of one row, in layers that keep a state.
    """

    weight_bytes: int
    weight_flops: int
    token_bytes: int
    token_flops: int
    state_bytes: int = 0

    def read_bytes(self, batch: int, tokens: int) -> int:
        """Return the bytes that a step reads.

        Args:
            batch: rows.
            tokens: cached in each of them.
        """
        return self.weight_bytes + batch * (tokens * self.token_bytes + self.state_bytes)

    def flops(self, batch: int, tokens: int) -> int:
        """Return the floating-point operations of a step.

        Args:
            batch: rows.
            tokens: cached in each of them.
        """
        return batch * (self.weight_flops + tokens * self.token_flops)


def step_cost(model: PreTrainedModel) -> StepCost:
    """Return what a step of a dense model costs; in a mixture of experts, as if all experts were used."""
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    embedding, head = inputs.weight, outputs.weight
    weights: list[torch.Tensor] = [parameter for parameter in model.parameters() if parameter is not embedding]
    if head is embedding:  # looked up row by row, but multiplied with whole
        weights.append(head)
    shape = ModelShape.of(model.config)
    return StepCost(
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        weight_flops=2 * sum(weight.numel() for weight in weights),
        token_bytes=shape.kv_bytes_per_token(embedding.element_size()),
        token_flops=shape.attention_flops_per_key,
        state_bytes=shape.state_bytes(embedding.element_size()),
    )


Counts = npt.NDArray[np.int64]


def flops_by_length(shape: ModelShape, longest: int, predictor: bool) -> Counts:
    """Return the FLOPs of a decode step that attends to 0, 1, ... `longest` tokens: int64 [longest + 1].

    Args:
        shape: of the model.
        longest: most tokens.
        predictor: whether an importance predictor scores the token.

    Raises:
        UnsupportedError: the model is a mixture of experts.
    """
    scoring = PredictorCost.of(shape.hidden_size).flops if predictor else 0
    return np.array([shape.flops_per_token(tokens) + scoring for tokens in range(longest + 1)], dtype=np.int64)
