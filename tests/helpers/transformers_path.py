"""The transformers path on the tokens that another engine generated: one batch, teacher-forced."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor

import dynts
from dynts.cache.method import Method
from dynts.chat.markers import ThinkMarkers

MARKERS = (5, 6)
"""Token ids that open and close the thinking of the engines' random models."""


class _Forced(LogitsProcessor):
    """Lets every row generate given tokens, and keeps the model's own logits."""

    def __init__(self, outputs: Sequence[Sequence[int]], steps: int) -> None:
        self.outputs = torch.tensor([[*tokens, *[0] * (steps - len(tokens))] for tokens in outputs])
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced.scatter_(1, self.outputs[:, self.step, None], 0.0)
        self.step += 1
        return forced


def forced_logprobs(
    model: str | Path,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    config: dynts.CompressionConfig,
    predictor: dynts.ImportancePredictor,
    markers: ThinkMarkers | None,
    method: str | Method = "dynts",
    dtype: torch.dtype = torch.float32,
) -> tuple[list[torch.Tensor], int]:
    """Log-probabilities [tokens, vocabulary] of each row, and how many compactions there were (rows not told apart)."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    loaded.generation_config.eos_token_id = None
    width, steps = max(map(len, prompts)), max(map(len, outputs))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with dynts.compress(loaded, method, config, predictor, markers=markers) as session, torch.no_grad():
        out = loaded.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=steps,
            do_sample=False,
            logits_processor=[_Forced(outputs, steps)],
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
    logits = torch.stack(out.logits, dim=1)
    rows = [row[: len(tokens)].float().log_softmax(-1) for row, tokens in zip(logits, outputs, strict=True)]
    return rows, len(session.stats[0].compactions)
