"""A tiny random model of every type in transformers' causal-LM mapping, by rules over the names of sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
MOST_LAYERS = 4

_NAMES: dict[Any, str] = {
    64: "vocab_size unpadded_vocab_size vocab_size_per_layer_input intermediate_size moe_intermediate_size ffn_dim "
    "decoder_ffn_dim encoder_ffn_dim dim_ff dff d_inner ffn_hidden_size expert_ffn_hidden_size "
    "shared_expert_intermediate_size shared_intermediate_size shared_experts_intermediate_size "
    "intermediate_size_mlp dense_intermediate_size moe_shared_expert_intermediate_size feed_forward_size "
    "mamba_d_ssm decoder_vocab_size pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab",
    32: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size word_embed_proj_dim lru_width "
    "input_embedding_size output_embedding_size hidden_size_global dim_model_base "
    "router_hidden_size adapter_in_dim out_hidden_size ple_embed_dim pronunciation_embed_dim shape_embed_dim",
    16: "q_lora_rank kv_lora_rank o_lora_rank hc_lowrank mamba_chunk_size chunk_size laurel_rank loop_gate_rank "
    "hidden_size_per_layer_input gated_norm_rank adapter_rank mamba_d_state state_size ssm_state_size mamba_d_head "
    "mamba_head_dim mamba_headdim global_head_dim",
    8: "head_dim sliding_window sliding_window_size swa_head_dim attention_chunk_size attention_window_size "
    "local_attention window_size qk_rope_head_dim qk_nope_head_dim v_head_dim swa_v_head_dim linear_key_head_dim "
    "linear_value_head_dim linear_head_dim index_head_dim kv_channels dim_head d_head attention_head_size "
    "rotary_dim query_pre_attn_scalar d_rel rel_extent time_step_rank mamba_dt_rank block_size index_block_size",
    4: "num_attention_heads swa_num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads attention_heads num_decoder_attention_heads num_encoder_attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts linear_num_value_heads linear_num_heads "
    "mamba_n_heads mamba_num_heads index_n_heads zero_expert_num",
    2: "num_key_value_heads swa_num_key_value_heads num_kv_heads num_experts_per_tok moe_topk "
    "linear_num_key_heads num_global_key_value_heads depth num_layers encoder_layers decoder_layers "
    "num_decoder_layers num_encoder_layers n_layer n_layers num_blocks",
    1: "n_group n_groups topk_group n_shared_experts num_shared_experts",
    1024: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length",
    0.2: "initializer_range init_std",
}

SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}
"""What becomes of the sizes that configurations have, by name."""

_KINDS = ["sliding_attention", "full_attention"]
_SLIDING = {"layer_types": _KINDS}
_CONV = {"layer_types": ["conv", "full_attention"]}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_EXPERTS = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}
_INDEXER |= {"indexer_budget": 16, "indexer_compress_ratio": 4, "ngram_vocab_size_base": 64, "split_ngram_parts": 2}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

SPECIFIC: dict[str, dict[str, Any]] = {
    # what alternates in published checkpoints and not in the default configuration
    **dict.fromkeys(("laguna", "mellum", "ministral"), _SLIDING),
    "granitemoehybrid": _LINEAR,
    "lfm2": _CONV,
    "lfm2_moe": _CONV | {"num_dense_layers": 1},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gemma3n_text": {"layer_types": [*_KINDS, *_KINDS], "num_kv_shared_layers": 2},
    # no window, as in the checkpoints that are used
    "mistral": {"sliding_window": None},
    # their states make more of rounding: with larger weights transformers' own steps are as far from its forward pass
    "qwen3_next": {"initializer_range": 0.1},
    "nemotron_h": {"initializer_range": 0.1},
    "lara_mini": {"initializer_range": 0.1},
    "qwen3_5_moe_text": {"initializer_range": 0.1},
    # what belongs together
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8}},
    "deepseek_v2": _EXPERTS | {"topk_method": "greedy"},
    "dory": {"layer_types": [*_KINDS, *_KINDS], "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": _EXPERTS,
    "gpt_bigcode": {"num_key_value_heads": ...},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "mamba2": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": _INDEXER,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [32, 32], "attn_layers": ["local", "lsh"]},
    "xlnet": {"max_position_embeddings": ...},
    "xlstm": {"chunk_size": ...},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"initializer_range": 0.05, "n_mamba_heads": 4, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
"""What single types need beside; ... leaves a size as it is by default."""

NOT_TRIED = {
    "dots3_note": "the sizes of its parts depend on each other",
    "gemma3n": "needs timm",
    "gemma4_assistant": "drafts for another model, whose hidden states it needs",
    "musicgen": "`AutoModelForCausalLM` does not take its default configuration",
    "musicgen_melody": "`AutoModelForCausalLM` does not take its default configuration",
}
"""Types of which no tiny model is built, and why."""


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model, in which layers of every kind take part that the type's default one has."""
    return _shrunk(CONFIG_MAPPING[model_type], SPECIFIC.get(model_type, {}))


def _shrunk(kind: type[PreTrainedConfig], specific: dict[str, Any]) -> PreTrainedConfig:
    """A configuration with small sizes, and with those of its parts."""
    default = kind()
    held = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    layers = _layers(default, held)
    settings: dict[str, Any] = {name: size for name, size in SIZES.items() if _is_set(default, name)}
    if "kv_lora_rank" in settings:  # as many keys as queries
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    if "is_decoder" in held:
        settings["is_decoder"] = True
    for name, value in held.items():
        if isinstance(value, PreTrainedConfig):
            settings[name] = _shrunk(type(value), SPECIFIC.get(value.model_type, {}))
        elif isinstance(value, (list, tuple)) and layers and len(value) == default.num_hidden_layers:
            own = [value[layer] for layer in layers]
            settings[name] = [SIZES[name]] * len(layers) if name in SIZES else own
    if layers:
        settings["num_hidden_layers"] = len(specific.get("layer_types", layers))
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "tie_word_embeddings": False}
    return kind(**{name: value for name, value in (settings | specific).items() if value is not ...})


def _is_set(config: PreTrainedConfig, name: str) -> bool:
    """Whether the configuration has a size of that name that can be told."""
    own = getattr(type(config), name, None)
    if isinstance(own, property):
        return own.fset is not None
    if name == "head_dim" and name in vars(config):
        return True
    try:
        return getattr(config, name, None) is not None
    except RuntimeError:  # it differs from layer to layer
        return True


def _layers(default: PreTrainedConfig, held: dict[str, Any]) -> list[int]:
    """Indices of layers that between them have every combination of what is told layer by layer."""
    count = held.get("num_hidden_layers")
    if count is None:
        return []
    told = [value for value in held.values() if isinstance(value, (list, tuple)) and len(value) == count]
    kinds: dict[Any, int] = {}
    for layer in range(count):
        kinds.setdefault(repr([value[layer] for value in told]), layer)
    chosen = sorted(kinds.values())[:MOST_LAYERS]
    return sorted({*chosen, *range(2)}) if len(chosen) < 2 else chosen


def tiny_model_of(model_type: str) -> PreTrainedModel:
    """A random float32 model of a type. The caller's random state is left alone."""
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                # biases and weights of norms start constant, and the embedding of padding at zero
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                elif parameter.ndim == 2 and len(parameter) == SIZES["vocab_size"]:
                    parameter[config.pad_token_id].normal_(std=SIZES["initializer_range"])
    return model.eval()
