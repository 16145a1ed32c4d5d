"""Small GGUF files, as llama.cpp would write them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONTROL = ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>")
MARKERS = ("<think>", "</think>")
MERGES = ("Ġ t", "h e", "Ġt he", "> Ċ", "u m", "s um")
TOKENS = (
    *sorted(bytes_to_unicode().values()),
    *(merge.replace(" ", "") for merge in MERGES),
    *CONTROL,
    *MARKERS,
    "[PAD268]",
)
BOS, EOS = TOKENS.index(CONTROL[3]), TOKENS.index(CONTROL[0])
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "<｜User｜>{{ message.content }}{% else %}"
    "<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def tokenizer_keys() -> dict[str, Any]:
    """A byte-level vocabulary with control tokens such as DeepSeek's, which no byte alphabet spells."""
    kinds = [
        TokenType.CONTROL
        if token in CONTROL
        else TokenType.USER_DEFINED
        if token in MARKERS
        else TokenType.UNUSED
        if token.startswith("[PAD")
        else TokenType.NORMAL
        for token in TOKENS
    ]
    return {
        "model": "gpt2",
        "pre": "deepseek-r1-qwen",
        "tokens": list(TOKENS),
        "token_type": [int(kind) for kind in kinds],
        "merges": list(MERGES),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "padding_token_id": EOS,
        "add_bos_token": True,
        "chat_template": TEMPLATE,
    }


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    keys: dict[str, Any],
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    without: str = "nothing",
    parts: int = 1,
    rope_scaling: float | None = None,
    rope_freqs: bool = False,
) -> Path:
    """Write a Qwen2 model.

    Args:
        path: the file.
        model: its weights, of which those whose names contain `without` are left out.
        keys: of the tokenizer.
        kind: that matrices are stored in.
        without: see model.
        parts: of which the file says it is the first.
        rope_scaling: factor of YaRN in the metadata.
        rope_freqs: add Llama 3.1's tensor of factors.
    """
    config = model.config
    writer = GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope_scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope_scaling)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.ones(config.head_dim // 2, dtype=np.float32))
    if parts > 1:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", parts)
    for key, value in keys.items():
        name = f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}"
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}[
            type(value)
        ]
        add(name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        if without not in name:
            data = np.ascontiguousarray(tensor.float().numpy())
            used = kind if data.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(stored, gguf.quantize(data, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
