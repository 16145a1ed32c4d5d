"""Run dynts beside the reference: a predictor that needs no training, and conversations of one or several rows."""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast

import dynts
from dynts.cache.interface import CACHE
from dynts.methods import resolve_method
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from tiny import VOCAB_SIZE

TOLERANCE = 2e-5
"""Largest float32 difference of logits that rounding explains."""


def random_predictor(
    hidden_size: int = 32,
    seed: int = 0,
    think: tuple[int, int] | None = None,
    native: tuple[int, int] | bool = False,
    all_tokens: bool = True,
) -> ImportancePredictor:
    """An untrained predictor whose scores spread.

    Native for full-attention layers and KV heads, True for the two of two of a tiny model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        markers = {} if think is None else {"think_start": [think[0]], "think_end": [think[1]]}
        layers, kv_heads = native if isinstance(native, tuple) else (2, 2) if native else (1, 1)
        predictor = ImportancePredictor(
            PredictorConfig(hidden_size, layers, kv_heads, all_tokens=all_tokens, **markers)
        )
        with torch.no_grad():
            for parameter in predictor.parameters():
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return predictor.eval()


def predictor_for(method: str | dynts.methods.Method) -> ImportancePredictor:
    """A random predictor that serves the method."""
    chosen = resolve_method(method)
    return random_predictor(native=chosen.needs_predictor and chosen.granularity == "native")


def random_tokens(count: int, seed: int) -> list[int]:
    """Ordinary tokens of the tiny models' vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, VOCAB_SIZE, (count,), generator=generator).tolist()


@dataclass
class Talk:
    """What a batch generated: per turn, tokens [batch][new] and the logits [batch, new, vocab] that chose them."""

    tokens: list[list[list[int]]]
    logits: list[Tensor]
    session: dynts.Session


def converse(
    model: PreTrainedModel,
    turns: list[tuple[list[list[int]], int]],
    method: str | dynts.methods.Method,
    config: dynts.CompressionConfig,
    **options: object,
) -> Talk:
    """Generate several turns of a left-padded batch on one cache; each turn is (tokens of each row, new tokens)."""
    session = dynts.compress(model, method, config, predictor_for(method), record=True, **options)
    talk = Talk([], [], session)
    with talk.session:
        ids = torch.empty(len(turns[0][0]), 0, dtype=torch.long)
        mask, cache = ids, None
        for rows, new_tokens in turns:
            width = max(map(len, rows))
            ids = torch.cat([ids, torch.tensor([[0] * (width - len(row)) + row for row in rows])], dim=1)
            ones = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            mask = torch.cat([mask, torch.tensor(ones)], dim=1)
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                **{CACHE: cache},
                max_new_tokens=new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            talk.tokens.append(out.sequences[:, ids.shape[1] :].tolist())
            talk.logits.append(torch.stack(out.logits, dim=1))
            ids, cache = out.sequences, out[CACHE]
            cache.check_integrity()
            mask = torch.cat([mask, torch.ones(len(rows), new_tokens, dtype=torch.long)], dim=1)
    return talk


class ForcedTokens(LogitsProcessor):
    """Lets a trace's own next token be the only choice."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.ids[input_ids.shape[1]]] = 0
        return forced


def cached_tokens(prompt: int, generated: int, schedule: dynts.CompressionConfig | None) -> tuple[list[int], int]:
    """Tokens that each decode step attends to, its own included, and the number of compactions, step by step."""
    if schedule is None:
        return list(range(prompt + 1, prompt + generated)), 0
    lengths, length, compactions = [], prompt, 0
    for _ in range(generated - 1):
        length += 1
        lengths.append(length)
        if length >= schedule.budget:
            length, compactions = schedule.kept_tokens(prompt), compactions + 1
    return lengths, compactions


def padded(*rows: list[int]) -> dict[str, Tensor]:
    """A left-padded batch."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def footprint(model: PreTrainedModel) -> dict[str, Any]:
    """All of a model that a session could leave changed."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "own attributes": set(model.__dict__),
        "decoder attributes": set(model.get_decoder().__dict__),
        "generate": model.generate,
        "forward": (model.forward, model.get_decoder().forward),
        "hooks": {(name, hook): len(getattr(part, hook)) for name, part in model.named_modules() for hook in hooks},
        "attention": [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")],
        "config": model.config.to_dict(),
        "generation config": model.generation_config.to_dict(),
        "training": [part.training for part in model.modules()],
        "weights": {name: (value.dtype, value.double().sum().item()) for name, value in model.state_dict().items()},
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
    }


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id: w0 to w63, the first three as padding, beginning and end."""
    words = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCAB_SIZE)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
