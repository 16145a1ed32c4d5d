"""What a decode step has to read and compute at least."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.architecture import full_attention_layers, head_size, kv_heads


@dataclass(frozen=True, slots=True)
class StepCost:
    """A decode step of one token a row.

    Attributes:
        weight_bytes: read once a step, whatever the batch.
        weight_flops: of a row, outside attention.
        token_bytes: keys and values of one cached token of one row, all layers.
        token_flops: attention of one row to one cached token, all layers.
    """

    weight_bytes: int
    weight_flops: int
    token_bytes: int
    token_flops: int

    def read_bytes(self, batch: int, tokens: int) -> int:
        """Bytes that a step reads with so many cached tokens a row."""
        return self.weight_bytes + batch * tokens * self.token_bytes

    def flops(self, batch: int, tokens: int) -> int:
        """Floating-point operations of a step."""
        return batch * (self.weight_flops + tokens * self.token_flops)


def step_cost(model: PreTrainedModel) -> StepCost:
    """The cost of a dense model; in a mixture of experts, as if all experts were used."""
    config = model.config
    inputs: Any = model.get_input_embeddings()
    outputs: Any = model.get_output_embeddings()
    embedding, head = inputs.weight, outputs.weight
    weights: list[torch.Tensor] = [parameter for parameter in model.parameters() if parameter is not embedding]
    if head is embedding:  # looked up row by row, but multiplied with whole
        weights.append(head)
    layers, size = len(full_attention_layers(config)), head_size(config)
    return StepCost(
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        weight_flops=2 * sum(weight.numel() for weight in weights),
        token_bytes=2 * layers * kv_heads(config) * size * embedding.element_size(),
        token_flops=4 * layers * config.num_attention_heads * size,
    )
