"""Batches that run until their longest row ends: leaves as soon as nothing uses it any more."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
)

from dynts.config import Sampling
from dynts.decode.checkpoint import more_warpers, plain_search
from dynts.decode.sampling import _LARGEST, FiniteRows, StableTopP, _candidates
from dynts.models import end_tokens, input_device


class StaticSampling(LogitsProcessor):
    """Chooses each row's next token and gives it the highest score, for greedy search to pick.

    Top-k comes first, so that all else is done for a few candidates instead of the vocabulary. Tokens that tie with the
    last of the k are candidates too, as in transformers, up to `_TIED` of them.

    Args:
        samplings: of the rows: seed, temperature (0 is greedy), top-k and top-p.
        device: of the logits.
        more: further warpers, applied after those.
    """

    def __init__(
        self, samplings: Sequence[Sampling], device: torch.device, more: Sequence[LogitsProcessor] = ()
    ) -> None:
        rows_of: dict[tuple[int, float, float], list[int]] = {}
        for row, sampling in enumerate(samplings):
            if sampling.temperature:
                rows_of.setdefault((sampling.top_k, sampling.temperature, sampling.top_p), []).append(row)
        self.groups = []
        for (top_k, temperature, top_p), rows in rows_of.items():
            nucleus = [StableTopP(top_p)] if top_p < 1 else []
            warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), *nucleus, *more])
            self.groups.append((top_k, warpers, torch.tensor(rows, device=device)))
        # drawn at once and on the CPU: the same on every device, and no transfer at each step
        steps = max(sampling.max_new_tokens for sampling in samplings)
        draws = [
            torch.rand(steps, generator=torch.Generator().manual_seed(sampling.seed)).clamp(max=_LARGEST)
            for sampling in samplings
        ]
        self.draws = torch.stack(draws, dim=1).to(device)
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy, with those of the chosen tokens raised."""
        for top_k, warpers, rows in self.groups:
            of_rows = scores if len(rows) == len(scores) else scores[rows]
            tokens, logits = _candidates(of_rows, top_k)
            mass = warpers(input_ids, logits.float()).softmax(dim=-1).cumsum(dim=-1)
            point = self.draws[self.step, rows, None] * mass[:, -1:]
            chosen = torch.searchsorted(mass, point, right=True)
            if tokens is not None:
                chosen = tokens.gather(1, chosen)
            # a plain number would be copied to the device, and waited for
            scores[rows[:, None], chosen] = scores.new_full((), torch.finfo(scores.dtype).max)
        self.step += 1
        return scores


class RowMinLength(LogitsProcessor):
    """Lets no row end before it has a length, prompt included and padding not.

    Args:
        length: in tokens.
        padding: int64 [rows, 1], tokens before each prompt.
        end_tokens: what ends a row.
    """

    def __init__(self, length: int, padding: torch.Tensor, end_tokens: Collection[int]) -> None:
        self.length = length
        self.padding = padding
        self.ends = torch.tensor(sorted(end_tokens), dtype=torch.long, device=padding.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [rows, vocabulary], `generate`'s own copy.

        Rows that are too short have -inf for what would end them.
        """
        short = input_ids.shape[1] - self.padding < self.length
        scores[:, self.ends] = scores[:, self.ends].masked_fill(short, -torch.inf)
        return scores


def generate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    finite: FiniteRows,
    **options: Any,
) -> None:
    """Call `model.generate` once, until the longest row ends; inside a `dynts.compress` context, under its budget.

    Args:
        model: a loaded model.
        tokenizer: its tokenizer, for the token that pads.
        prompts: token ids of each row.
        samplings: how to draw each row's tokens. All rows may go on until the largest `max_new_tokens` of them.
        finite: notes the rows that fail; whoever sees the tokens ends them.
        options: further arguments of `generate`: stopping criteria, to see the tokens as they come; they have to know
            the checkpoint's stop strings too (`dynts.decode.checkpoint`).
    """
    width, device = max(map(len, prompts)), input_device(model)
    pad = tokenizer.pad_token_id
    pad = pad if pad is not None else next(iter(end_tokens(model)), 0)
    # what pads is masked, but penalties look at it: a row's own first token adds nothing to what they see
    ids = torch.tensor([[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    # the sampling is a logits processor of ours: to generate() the search is greedy
    plain: dict[str, Any] = {
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "stop_strings": None,
    }
    processors = LogitsProcessorList([finite])
    assert model.generation_config is not None
    if least := model.generation_config.min_length:
        plain["min_length"] = 0  # generate() would count the padding
        processors.append(RowMinLength(least, (mask == 0).sum(dim=1, keepdim=True), end_tokens(model)))
    if any(sampling.temperature for sampling in samplings):
        processors.append(StaticSampling(samplings, device, more_warpers(model)))
    with plain_search(model):
        cast(Any, model).generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(sampling.max_new_tokens for sampling in samplings),
            pad_token_id=pad,
            logits_processor=processors,
            **plain,
            **options,
        )
