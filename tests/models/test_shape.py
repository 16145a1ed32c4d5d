"""The shape read from a configuration, against the model's own parameters and torch's FLOP counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, DynamicCache

from dynts.cache.interface import CACHE
from dynts.errors import UnsupportedError
from dynts.models import load_config
from dynts.models.shape import ModelShape
from tiny import SLIDING_WINDOW, STATEFUL, TINY_NAMES, tiny_model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", TINY_NAMES)
def test_parameters_and_cache_of_a_real_model(name: str, tied: bool) -> None:
    model = tiny_model(name, tie_word_embeddings=tied)
    before = model.config.to_dict()
    shape = ModelShape.of(model.config)
    assert model.config.to_dict() == before, "it is only read"
    assert shape.parameters == model.num_parameters()
    assert shape.layers == model.config.num_hidden_layers
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 20, dtype=torch.long), **{CACHE: cache})
    growing = [layer for layer in cache.layers if layer.keys.shape[-2] == 20]
    held = sum(tensor.nbytes for layer in growing for tensor in (layer.keys, layer.values))
    assert shape.full_attention_layers == len(growing)
    assert 20 * shape.kv_bytes_per_token(4) == held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STATEFUL)
def test_states_take_what_a_cache_of_transformers_holds(name: str, dtype: torch.dtype) -> None:
    model = tiny_model(name).to(dtype)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, 20, dtype=torch.long), **{CACHE: cache})
    states = [
        state
        for layer in cache.layers
        for kept in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {}))
        for state in kept.values()
        if state is not None
    ]
    held = sum(state.nbytes for state in states)
    attention = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    growing = sum(tensor.nbytes for layer in attention for tensor in (layer.keys, layer.values))
    shape = ModelShape.of(model.config)
    assert shape.full_attention_layers == len(attention) == 2
    assert shape.state_bytes(dtype.itemsize) == held > 0
    assert shape.kv_bytes(20, dtype.itemsize) == held + growing


@pytest.mark.parametrize("cached", [3, 40])
@pytest.mark.parametrize("name", [name for name in TINY_NAMES if name != "gpt_oss"])  # whose experts are not counted
def test_flops_of_a_step_are_what_torch_counts(name: str, cached: int) -> None:
    model = tiny_model(name, attn_implementation="eager")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, cached - 1, dtype=torch.long), **{CACHE: cache})
        with FlopCounterMode(display=False) as counter:
            model(input_ids=torch.ones(1, 1, dtype=torch.long), **{CACHE: cache})
    assert ModelShape.of(model.config).flops_per_token(cached) == counter.get_total_flops()


def test_sliding_layers_attend_to_their_window_only() -> None:
    shape = ModelShape.of(tiny_model("gemma2").config)
    assert (shape.full_attention_layers, shape.layers, shape.sliding_window) == (2, 3, SLIDING_WINDOW)
    growth = 4 * shape.query_heads * shape.head_size
    assert shape.flops_per_token(SLIDING_WINDOW) - shape.flops_per_token(SLIDING_WINDOW - 1) == 3 * growth
    assert shape.flops_per_token(100) - shape.flops_per_token(99) == 2 * growth


def test_a_large_model_needs_no_memory() -> None:
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    shape = ModelShape.of(config)
    assert shape.parameters == 7_615_616_512  # DeepSeek-R1-Distill-Qwen-7B
    assert shape.kv_bytes_per_token(2) == 57_344


def test_experts_have_a_cache_but_no_flops() -> None:
    shape = ModelShape.of(AutoConfig.for_model("qwen3_moe", num_hidden_layers=1, num_experts=2, vocab_size=8))
    assert shape.kv_bytes_per_token(2) > 0
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        shape.flops_per_token(1)


def test_sizes_under_other_names_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"gpt2.*intermediate_size"):
        ModelShape.of(AutoConfig.for_model("gpt2", n_layer=1, vocab_size=8))


def test_missing_configuration() -> None:
    with pytest.raises(ValueError, match="could not read the configuration of no-such/model"):
        load_config("no-such/model")
