"""Train the embedded model from nothing on the synthetic task, on a CPU."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dynts.chat.markers import END
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.tiny.task import TRAINING, make_problem
from recipes.embedded_model.muon import Muon
from recipes.embedded_model.solution import write_conclusion, write_thinking
from recipes.embedded_model.tokenizer import STOP

_IGNORED = -100
_POOL = 512


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the embedded model is trained. The schedule counts tokens, so that a faster machine gets the same model.

    Args:
        tokens: how many tokens to train on, padding left out.
        batch_tokens: tokens of an update, padding included.
        learning_rate: peak, of Muon and AdamW alike.
        warmup: share of the tokens over which the rate rises.
        decay: share of the tokens over which it falls to zero at the end.
        no_thinking: share of the examples whose thinking is empty, so that a model without thinking is in distribution.
        curriculum: (share of the tokens, steps of a problem) from the first to the last stage.
        seed: of weights and examples.
    """

    tokens: int = 13_000_000
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    warmup: float = 0.01
    decay: float = 0.5
    no_thinking: float = 0.04
    curriculum: tuple[tuple[float, range], ...] = (
        (0.1, range(2, 5)),
        (0.25, range(2, 8)),
        (0.4, range(3, 10)),
        (1.0, range(4, 13)),
    )
    seed: int = 0


Report = Callable[[int, float, LlamaForCausalLM], None]
"""Called after each update with the tokens seen, the loss and the model."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the embedded architecture with random weights: 4 layers, width 128, 4 query and 2 KV heads of 32."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pretrain(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, report: Report) -> LlamaForCausalLM:
    """Train a model from random weights; loss on thinking and answer alone.

    Args:
        tokenizer: of `recipes.embedded_model.tokenizer`.
        recipe: the schedule.
        report: called after each update.
    """
    torch.manual_seed(recipe.seed)
    model = build_model(tokenizer).train()
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "layers" in name]
    hidden = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in hidden]
    optimizers = [
        Muon(matrices, lr=recipe.learning_rate),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    seen = 0
    batches = _batches(tokenizer, recipe, lambda: seen)
    while seen < recipe.tokens:
        ids, labels, count = next(batches)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(seen / recipe.tokens, recipe)
        hidden_states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = labels != _IGNORED
        # padding and question need no logits
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden_states[wanted]), labels[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += count
        report(seen, loss.item(), model)
    return model.eval()


def _schedule(progress: float, recipe: Recipe) -> float:
    """Warm-up, constant, linear decay."""
    return min(1.0, (progress + 1e-3) / recipe.warmup, (1 - progress) / recipe.decay)


def _batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seen: Callable[[], int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Right-padded ids and next-token labels [rows, tokens] of problems of about one length, and their tokens.

    With causal attention right padding needs no mask: nothing that counts comes after it.
    """
    rng = random.Random(recipe.seed)
    # each seed trains on a range of problems of its own
    problems = itertools.count(TRAINING.start + recipe.seed * 100_000)
    while True:
        progress = seen() / recipe.tokens
        steps = next(steps for end, steps in recipe.curriculum if progress <= end)
        pool = [_example(tokenizer, next(problems), steps, rng.random() < recipe.no_thinking) for _ in range(_POOL)]
        pool.sort(key=lambda example: len(example[0]))
        batches = []
        while pool:
            rows = max(1, recipe.batch_tokens // len(pool[-1][0]))
            batches.append([pool.pop() for _ in range(min(rows, len(pool)))])
        rng.shuffle(batches)
        for batch in batches:
            longest = max(len(ids) for ids, _ in batch)
            ids = torch.full((len(batch), longest), int(tokenizer.pad_token_id))
            labels = torch.full((len(batch), longest), _IGNORED)
            for row, (tokens, prompt) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, prompt - 1 : len(tokens) - 1] = ids[row, prompt : len(tokens)]
            yield ids, labels, sum(len(tokens) for tokens, _ in batch)


def _example(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: range, without_thinking: bool
) -> tuple[list[int], int]:
    """Token ids of one solved problem, and how many of them are the prompt."""
    problem = make_problem(seed, steps)
    prompt = encode_prompt(tokenizer, chat_prompt(tokenizer, problem.question))
    thinking = "" if without_thinking else write_thinking(problem)
    response = f"{thinking} {END} {write_conclusion(problem)} {STOP}"
    return prompt + tokenizer.encode(response, add_special_tokens=False), len(prompt)
