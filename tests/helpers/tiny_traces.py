"""Tiny models, a tiny tokenizer and tiny traces, built in process: nothing is downloaded."""

import random
from copy import deepcopy

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *map(str, range(200)), *"[]{}().,\\+="]
SPECIAL = ["[UNK]", "<eos>", "<think>", "</think>"]
EXTRA = [
    "user",
    "assistant",
    "boxed",
    "Please",
    "reason",
    "step",
    "by",
    "and",
    "put",
    "your",
    "final",
    "answer",
    "within",
]
SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
ARCHITECTURES = {
    "llama": LlamaConfig(**SIZES, num_hidden_layers=3, num_key_value_heads=2, initializer_range=0.1),
    "qwen2": Qwen2Config(**SIZES, num_hidden_layers=2, num_key_value_heads=1, initializer_range=0.1),
    "qwen3": Qwen3Config(**SIZES, num_hidden_layers=2, num_key_value_heads=4, initializer_range=0.1),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=4,
        num_key_value_heads=2,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        initializer_range=0.1,
    ),
    "gemma2": Gemma2Config(
        **SIZES,
        num_hidden_layers=2,
        num_key_value_heads=2,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
        attn_logit_softcapping=2.0,
        initializer_range=0.1,
    ),
    "gpt_oss": GptOssConfig(
        **SIZES,
        num_hidden_layers=3,
        num_key_value_heads=2,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        # its sinks are drawn as its weights are
        initializer_range=0.5,
    ),
}


def build_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Gemma 2 caps its logits and gpt-oss has sinks, which sdpa does not
        attention = "eager" if architecture in ("gemma2", "gpt_oss") else "sdpa"
        return AutoModelForCausalLM.from_config(
            deepcopy(ARCHITECTURES[architecture]), attn_implementation=attention
        ).eval()


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS, *EXTRA])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="<eos>")
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_row(index: int, steps: int = 8) -> dict[str, str]:
    """A right and well-formed trace about adding two numbers."""
    pick = random.Random(index)
    x, y = pick.randrange(90), pick.randrange(90)
    thinking = " . ".join(f"{pick.choice(WORDS[:26])} = {pick.randrange(200)}" for _ in range(steps))
    return {
        "id": f"trace-{index}",
        "question": f"{x} + {y} = a . {index}",
        "response": f"{thinking} . {x} + {y} = {x + y}\n</think>\n\na = \\boxed{{{x + y}}}",
        "answer": str(x + y),
    }
