"""Models that dynts cannot compress exactly, refused before anything is computed. Calls: `dynts.decode.call`."""

import inspect
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.states import StateLayer
from dynts.errors import UnsupportedError
from dynts.methods import METHODS, Method
from dynts.models.attention import OBSERVABLE, check_shown, implementation_of
from dynts.models.shape import CACHELESS, full_attention_layers, keeps_states

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


def without_wrapper(model: Any) -> Any:
    """Return the transformers model in a wrapper of PEFT, whose adapters are part of its layers; any other as it is.

    Raises:
        UnsupportedError: the adapter is no part of the layers, but tokens that nobody wrote.
    """
    peft: Any = sys.modules.get("peft")  # it has been imported if the model is one of its own
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    adapter = model.active_peft_config
    if adapter.is_prompt_learning or adapter.is_adaption_prompt:
        raise UnsupportedError(
            f"PEFT's {adapter.peft_type.value} brings keys or embeddings that are no tokens, which dynts cannot place: "
            "use an adapter of the weights, such as LoRA"
        )
    return model.get_base_model()


def check_training(model: PreTrainedModel) -> None:
    """Refuse a forward pass in which transformers may drop the cache.

    Raises:
        UnsupportedError: the model is being trained with gradient checkpointing.
    """
    # transformers' own property has a name that changes with its version
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UnsupportedError(
            "gradient checkpointing drops the cache while a model is in training mode: call model.eval() before "
            "generating, and model.train() afterwards"
        )


def check_model(model: PreTrainedModel, method: Method) -> None:
    """Refuse models whose decoding cannot be compressed exactly.

    Args:
        model: the model.
        method: by which it is to decode.

    Raises:
        UnsupportedError: names the reason.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise UnsupportedError(f"{name} is not a transformers model with generate(): load it with AutoModelForCausalLM")
    if model.config.is_encoder_decoder:
        raise UnsupportedError(f"{name} is an encoder-decoder model: dynts compresses decoder-only models")
    if model.config.get_text_config() is not model.config:
        raise UnsupportedError(f"{name} is a multimodal model: load its text decoder as a causal language model")
    # transformers does not say so of models that keep a state, whatever their attention
    stateful = keeps_states(model.config)
    if not (model._supports_attention_backend or (stateful and model._can_set_attn_implementation())):
        raise UnsupportedError(f"{name} does not use transformers' attention interface, so its masks are its own")
    decoder: Any = model.get_decoder()
    if decoder is model:
        raise UnsupportedError(f"{name} has no decoder of its own (get_decoder()), so its hidden states cannot be seen")
    parameters = inspect.signature(type(decoder).forward).parameters
    if "position_ids" not in parameters or CACHE not in parameters:
        raise UnsupportedError(f"{name} takes no position_ids and {CACHE}: evicted tokens would shift positions")
    if getattr(model.config, "rel_extent", None):
        raise UnsupportedError(f"{name} biases attention by distances counted in slots, which evictions would shift")
    if getattr(model.config, "n_recurrent_loops", 1) > 1:
        raise UnsupportedError(f"{name} runs its layers in loops, which copy and read the cache's layers themselves")
    modules = (model.config, *decoder.modules())
    if not all(getattr(module, "is_causal", True) for module in modules):
        raise UnsupportedError(
            f"{name} lets tokens attend to later ones: load it as a decoder, such as with is_decoder=True in its "
            "configuration"
        )
    full_attention_layers(model.config)
    implementation = implementation_of(model)
    if implementation not in (*OBSERVABLE, *FLASH):
        raise UnsupportedError(
            f"attention implementation {implementation!r} is not supported: load the model with "
            f"attn_implementation= one of {', '.join((*OBSERVABLE, *FLASH))}"
        )
    if method.observes_attention and implementation not in OBSERVABLE:
        raise UnsupportedError(
            f"method {type(method).__name__} looks at queries and keys, which {implementation} does not show: "
            f"load the model with attn_implementation= one of {', '.join(OBSERVABLE)}"
        )


def check_first_pass(model: PreTrainedModel, cache: BudgetCache, shown: list[tuple[int, torch.Size]]) -> None:
    """Refuse what only a forward pass tells: what the layers cache, and what they attend to.

    Args:
        model: the model.
        cache: after its first forward pass, not committed yet.
        shown: full-attention layers whose attention was observed, with the shapes of their keys.

    Raises:
        UnsupportedError: names the model, the layers and what works.
    """
    name, method = type(model).__name__, cache.method
    cached = dict(zip(cache.full_layers, cache.budget_layers, strict=True))
    types = getattr(model.config, "layer_types", None) or [""] * len(cache.layers)
    empty = {layer for layer, slots in cached.items() if not slots.is_initialized}
    for layer, state in enumerate(cache.layers):
        if isinstance(state, StateLayer) and not state.is_filled and types[layer] not in CACHELESS:
            empty.add(layer)
    if empty:
        raise UnsupportedError(
            f"layers {', '.join(map(str, sorted(empty)))} of {name} cached nothing: the model does not use the cache "
            "that it is given"
        )
    if cache.native and any(slots.keys.shape[1] != method.kv_heads for slots in cached.values()):
        heads = sorted({slots.keys.shape[1] for slots in cached.values()})
        raise UnsupportedError(
            f"the layers of {name} cache keys of {', '.join(map(str, heads))} heads and not of {method.kv_heads}: "
            "native granularity has no set of tokens for each KV head there; use granularity 'shared'"
        )
    attended = [layer for layer, _ in shown]
    if cache.native and (len(set(attended)) < len(attended) or any(keys[1] != method.kv_heads for _, keys in shown)):
        raise UnsupportedError(
            f"{name} repeats the keys or values of a head for others, so heads cannot have tokens of their own: use "
            "granularity 'shared'"
        )
    if method.observes_attention:
        # a predictor needs labels, which are made of attention weights too
        others = [each for each, kind in METHODS.items() if not kind.observes_attention and not kind.needs_predictor]
        way_out = f"choose one of the methods {', '.join(others)}"
        check_shown(model, attended, list(cached), way_out)
        compressed = any(cached[layer].keys.shape[1::2] != keys[1::2] for layer, keys in shown)
    else:
        compressed = any(slots.keys.shape[1] != method.kv_heads for slots in cached.values())
    if method.reads_cache and compressed:
        others = [each for each, kind in METHODS.items() if not kind.reads_cache]
        raise UnsupportedError(
            f"{name} caches compressed keys and values and expands them in every step, so method "
            f"{type(method).__name__} cannot score tokens by what is cached: choose one of the methods "
            f"{', '.join(others)}"
        )


def check_compile(model: PreTrainedModel, method: Method) -> None:
    """Refuse what cannot be decoded at one fixed shape.

    Args:
        model: the model.
        method: by which it is to decode.

    Raises:
        UnsupportedError: names the reason.
    """
    if not method.evicts:
        raise UnsupportedError("without a budget the cache has no fixed size: method 'full' cannot be compiled")
    if method.observes_attention:
        raise UnsupportedError(
            f"method {type(method).__name__} looks at queries and keys as they come, which a compiled step does not "
            "show: drop compile=True"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedError("offloaded weights come and go, which a compiled step cannot follow: drop compile=True")
    if keeps_states(model.config):
        raise UnsupportedError("layers that keep a state put another in its place with every step: drop compile=True")
    if len(full_attention_layers(model.config)) < model.config.num_hidden_layers:
        raise UnsupportedError("sliding-window layers change their shape as they grow: drop compile=True")
    implementation = implementation_of(model)
    if implementation not in OBSERVABLE:
        raise UnsupportedError(
            f"attention implementation {implementation!r} cannot skip slots that are not in use at a fixed shape: "
            f"load the model with attn_implementation= one of {', '.join(OBSERVABLE)}, or drop compile=True"
        )
