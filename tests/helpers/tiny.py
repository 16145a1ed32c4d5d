"""Tiny randomly initialised models for the tests: every supported architecture, small enough for one core."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 64
SLIDING_WINDOW = 8

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    # At this width 0.1 leaves attention nearly flat and evictions hardly felt; from 0.25 rounding alone reaches 1e-5.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    # No end token: generation runs to the length asked for.
    "eos_token_id": None,
    # Tied embeddings make a random model repeat its last token for ever.
    "tie_word_embeddings": False,
}

SPECIFIC: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "phi3": ("phi3", {"sliding_window": None}),
    # The two hybrids put the sliding layer at different places, so that an error in the layer index shows.
    "gemma2": (
        "gemma2",
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": SLIDING_WINDOW,
            "query_pre_attn_scalar": 8,
            # The default of 50 is never felt by a tiny model.
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": SLIDING_WINDOW,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": SLIDING_WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}

WITHOUT_SDPA = ("gemma2", "gpt_oss")
"""Soft-capping and attention sinks need eager attention."""

TINY_NAMES = tuple(SPECIFIC)

_DELTA: dict[str, Any] = {
    # Rounding weighs more in states: from 0.15 it alone reaches 2e-5. Lost tokens and states are felt all the same.
    "initializer_range": 0.1,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {
    "initializer_range": 0.15,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}

STATEFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("qwen3_next", {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_5": ("qwen3_5_text", _DELTA),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "granite": (
        "granitemoehybrid",
        {
            **_MAMBA,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
        },
    ),
    # Each of its layers has both full attention and a state.
    "falcon_h1": ("falcon_h1", {**_MAMBA, "mamba_d_ssm": 64}),
}
"""Architectures some of whose layers keep a state. Each has two full-attention layers, as the others have."""

FORGETFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
    ),
    "zamba": (
        "zamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_key_value_heads": 4,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "n_mamba_heads": 2,
        },
    ),
}
"""Those of transformers that begin their state anew when several tokens come."""


def tiny_model(name: str, seed: int = 0, attn_implementation: str = "sdpa", **overrides: Any) -> PreTrainedModel:
    """Build a random float32 model of architecture `name`; `overrides` go to its configuration.

    Those that have no sdpa path are built with eager attention when sdpa is asked for.
    The caller's random state is left alone.
    """
    model_type, specific = (SPECIFIC | STATEFUL | FORGETFUL)[name]
    config = AutoConfig.for_model(model_type, **{**COMMON, **specific, **overrides})
    if name in WITHOUT_SDPA and attn_implementation == "sdpa":
        attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        # With this offset seed 0 makes every architecture write a varied text rather than one token for ever.
        torch.manual_seed(seed + 4)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                # Biases and norm weights start constant: give them values, or code that forgets them passes.
                if parameter_name.endswith("sinks"):
                    # as large as logits get, or what forgets them passes
                    parameter.normal_(mean=2.0)
                elif parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                elif "embed_tokens" in parameter_name:
                    # The padding row starts at zero, and a random model does generate token 0.
                    parameter[config.pad_token_id].normal_(std=config.initializer_range)
    return model.eval()
