"""The shape of a model's cache: which layers grow with the sequence, and what a token takes in one."""

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dynts.errors import UnsupportedError


def full_attention_layers(model_config: PreTrainedConfig) -> list[int]:
    """Indices of the layers whose cache grows with the sequence.

    Raises:
        UnsupportedError: the model has layers of another type than full and sliding-window attention, or only the latter.
    """
    layers = DynamicCache(config=model_config).layers
    types = set(getattr(model_config, "layer_types", None) or ())
    unknown = types - {"full_attention", "sliding_attention"}
    if unknown or not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        kinds = sorted(unknown) or sorted({type(layer).__name__ for layer in layers})
        raise UnsupportedError(f"layers of type {', '.join(kinds)} have no KV cache that dynts can compact")
    full = [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]
    if not full:
        raise UnsupportedError(
            "every layer of this model uses sliding-window attention: its cache is bounded already, "
            "there is nothing to compress"
        )
    return full


def kv_heads(model_config: PreTrainedConfig) -> int:
    """KV heads of a layer."""
    return getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads


def head_size(model_config: PreTrainedConfig) -> int:
    """Size of a head's keys."""
    return getattr(model_config, "head_dim", None) or model_config.hidden_size // model_config.num_attention_heads
