"""The shape of a model, read from its configuration: what a cached token takes, what a generated one costs."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from dynts.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a causal language model.

    Args:
        layers: decoder layers.
        full_attention_layers: those whose cache grows with the sequence.
        sliding_layers: those that attend to a window of the latest tokens.
        sliding_window: most tokens in it; None if there are no such layers.
        hidden_size: d.
        query_heads: of a layer.
        kv_heads: of a layer.
        head_size: size of a head's keys.
        intermediate_size: of the MLP.
        vocabulary: tokens.
        parameters: all of them; tied embeddings count once.
        matrix_parameters: those of the matrices that a generated token is multiplied with, the output head included and
            the looked-up embedding not; None for a mixture of experts, where it depends on the token.
        state_numbers: of a sequence, in layers that keep a state, in the dtype of the model.
        float32_state_numbers: likewise, kept in float32 whatever the dtype of the model.
    """

    layers: int
    full_attention_layers: int
    sliding_layers: int
    sliding_window: int | None
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    parameters: int
    matrix_parameters: int | None
    state_numbers: int
    float32_state_numbers: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Self:
        """Return the shape that a configuration describes; no weights are made or read.

        Raises:
            UnsupportedError: there is nothing in it that dynts can compress, or it names its sizes otherwise.
        """
        config = deepcopy(config.get_text_config())  # which a model made from it changes
        full, layers = len(full_attention_layers(config)), cached_layers(config)
        sliding = sum(isinstance(layer, DynamicSlidingWindowLayer) for layer in layers)
        stateful = keeps_states(config)
        try:
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            states = _states(model) if stateful else []
            in_float32 = sum(state.numel() for state in states if state.dtype == torch.float32)
            return cls(
                layers=config.num_hidden_layers,
                full_attention_layers=full,
                sliding_layers=sliding,
                sliding_window=config.sliding_window if sliding else None,
                hidden_size=config.hidden_size,
                query_heads=config.num_attention_heads,
                kv_heads=kv_heads(config),
                head_size=head_size(config),
                intermediate_size=config.intermediate_size,
                vocabulary=config.vocab_size,
                parameters=model.num_parameters(),
                matrix_parameters=None if _has_experts(config) else _matrix_parameters(model),
                state_numbers=sum(state.numel() for state in states) - in_float32,
                float32_state_numbers=in_float32,
            )
        except (AttributeError, ValueError) as error:
            raise UnsupportedError(
                f"the sizes of a model of type {config.model_type} cannot be read: {error}"
            ) from error

    @property
    def attention_flops_per_key(self) -> int:
        """Floating-point operations of a query that attends to one more cached token, in all full-attention layers."""
        return 4 * self.full_attention_layers * self.query_heads * self.head_size  # scores and weighted values

    def kv_bytes(self, tokens: int, dtype_bytes: int) -> int:
        """Return the bytes of a sequence's keys, values and states, sliding-window layers included.

        Args:
            tokens: cached in each full-attention layer.
            dtype_bytes: of a number in the cache, such as 2 for bfloat16.
        """
        return 2 * self.kv_heads * self.head_size * dtype_bytes * self._cached(tokens) + self.state_bytes(dtype_bytes)

    def state_bytes(self, dtype_bytes: int) -> int:
        """Return the bytes of a sequence's states, which do not grow with it.

        Args:
            dtype_bytes: of a number in the cache, such as 2 for bfloat16.
        """
        return self.state_numbers * dtype_bytes + self.float32_state_numbers * 4

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Return the bytes that the keys and values of one more cached token take in one sequence.

        Sliding-window layers and states are left out: their memory is bounded, whatever the length.

        Args:
            dtype_bytes: of a number in the cache, such as 2 for bfloat16.
        """
        return 2 * self.full_attention_layers * self.kv_heads * self.head_size * dtype_bytes

    def flops_per_token(self, cached_tokens: int) -> int:
        """Return the floating-point operations of the matrix products of one decode step of one sequence.

        A multiply-add counts two. Norms, softmax and activations are left out, as is usual: they are far below 1% of a
        large model's step. So is what changes a state, which is not a product of matrices.

        Args:
            cached_tokens: that the step attends to, its own included.

        Raises:
            UnsupportedError: the model is a mixture of experts.
        """
        if self.matrix_parameters is None:
            raise UnsupportedError(
                "the FLOPs of a mixture of experts depend on the experts that each token takes: dynts counts dense "
                "models only"
            )
        # a layer's attention takes as many operations a key, whether it slides or not
        layer = self.attention_flops_per_key // self.full_attention_layers
        return 2 * self.matrix_parameters + layer * self._cached(cached_tokens)

    def _cached(self, tokens: int) -> int:
        """Return the cached tokens of all layers together, where those of full attention have `tokens`."""
        windows = 0 if self.sliding_window is None else self.sliding_layers * min(tokens, self.sliding_window)
        return self.full_attention_layers * tokens + windows


def _states(model: Any) -> list[torch.Tensor]:
    """Return the states that a model without weights keeps of one sequence."""
    if model.config.get_text_config() is model.config and _has_experts(model.config):
        model.set_experts_implementation("batched_mm")  # others look at values, and there are none
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    with torch.device("meta"):
        output = model.get_decoder()(input_ids=ids, position_ids=ids, use_cache=True)
    cache = next(value for value in output.values() if isinstance(value, Cache))
    kept = [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    found = [state for layer in kept for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    return [state for state in found if state is not None]


def _has_experts(config: PreTrainedConfig) -> bool:
    names = ("num_experts_per_tok", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(getattr(config, name, None) for name in names)


def _matrix_parameters(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


_CACHED: dict[str, type] = {
    "full_attention": DynamicLayer,
    "sliding_attention": DynamicSlidingWindowLayer,
    "linear_attention": LinearAttentionLayer,
    "conv": LinearAttentionLayer,
    "hybrid": LinearAttentionAndFullAttentionLayer,
    "hybrid_sliding": LinearAttentionAndSlidingWindowAttentionLayer,
}
"""What transformers caches of a layer, by its type."""
CACHELESS = frozenset({"mlp", "moe"})
"""Types of layers that cache nothing. What stands for them among cached layers depends on transformers' version."""

FORGETFUL = frozenset({"jamba", "zamba"})
"""Models that begin their state anew when several tokens come at a time, whatever came before (5.16 to 5.24)."""


def cached_layers(model_config: PreTrainedConfig) -> list[Any]:
    """Return what transformers would cache of each layer, empty yet.

    Raises:
        UnsupportedError: the model has layers that dynts does not know.
    """
    if model_config.model_type == "minimax":
        raise UnsupportedError("MiniMax takes no cache but one of its own class: dynts cannot compact that")
    try:
        layers: list[Any] = DynamicCache(config=model_config).layers
    except AttributeError as error:
        raise UnsupportedError(f"transformers has no cache for a {model_config.model_type} model: {error}") from error
    types = getattr(model_config, "layer_types", None) or [""] * len(layers)
    unknown = set(types) - {"", *_CACHED, *CACHELESS}
    known = zip(layers, types, strict=False)
    if unknown or not all(kind in CACHELESS or type(layer) in _CACHED.values() for layer, kind in known):
        kinds = sorted(unknown) or sorted({type(layer).__name__ for layer in layers})
        raise UnsupportedError(f"layers of type {', '.join(kinds)} have no KV cache that dynts can compact")
    return layers


def keeps_states(model_config: PreTrainedConfig) -> bool:
    """Return whether a layer keeps a state of fixed size. Raises as `cached_layers`."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cached_layers(model_config))


def full_attention_layers(model_config: PreTrainedConfig) -> list[int]:
    """Return the indices of the layers whose cache grows with the sequence.

    Raises:
        UnsupportedError: the model has layers that dynts does not know, or none whose cache grows.
    """
    growing = (DynamicLayer, LinearAttentionAndFullAttentionLayer)
    full = [index for index, layer in enumerate(cached_layers(model_config)) if type(layer) in growing]
    if not full:
        raise UnsupportedError(
            "every layer of this model uses sliding-window attention or keeps a state: its cache is bounded already, "
            "there is nothing to compress"
        )
    return full


def kv_heads(model_config: PreTrainedConfig) -> int:
    """Return the number of KV heads of a full-attention layer.

    Raises:
        UnsupportedError: full-attention layers differ in their sizes.
    """
    own = _full_attention_config(model_config)
    return getattr(own, "num_key_value_heads", None) or own.num_attention_heads


def head_size(model_config: PreTrainedConfig) -> int:
    """Return the size of the keys of a full-attention layer's heads.

    Raises:
        UnsupportedError: full-attention layers differ in their sizes.
    """
    own = _full_attention_config(model_config)
    return getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads


def _full_attention_config(model_config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration that full-attention layers have in common."""
    if not model_config.is_heterogeneous:
        return model_config
    try:
        return model_config.per_layer_config["full_attention"]  # type: ignore[call-overload]
    except ValueError as error:
        raise UnsupportedError(f"full-attention layers of a {model_config.model_type} model differ: {error}") from error
