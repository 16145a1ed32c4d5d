"""Models and their tokenizers, from a folder, the Hub or a GGUF file."""

from dynts.models.load import (
    end_tokens,
    input_device,
    load_config,
    load_generation_config,
    load_model,
    load_tokenizer,
    parse_dtype,
    quantised_by,
    random_model,
)

__all__ = [
    "end_tokens",
    "input_device",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_tokenizer",
    "parse_dtype",
    "quantised_by",
    "random_model",
]
