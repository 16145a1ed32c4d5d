"""Generate for a batch whose rows have prompts, settings and ends of their own."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from dynts.decode.answer import Sampling
from dynts.decode.checkpoint import more_warpers, plain_search
from dynts.decode.finite import FiniteRows
from dynts.decode.row_sampling import RowMinLength, RowSampling
from dynts.models import end_tokens, input_device


def generate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    finite: FiniteRows,
    **options: Any,
) -> None:
    """One call of `model.generate`, until the longest row ends; inside a `dynts.compress` context, under its budget.

    Args:
        model: a loaded model.
        tokenizer: its tokenizer, for the token that pads.
        prompts: token ids of each row.
        samplings: how to draw each row's tokens. All rows may go on until the largest `max_new_tokens` of them.
        finite: notes the rows that fail; whoever sees the tokens ends them.
        options: further arguments of `generate`: stopping criteria, to see the tokens as they come; they have to know the
            checkpoint's stop strings too (`dynts.decode.checkpoint`).
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
        processors.append(RowSampling(samplings, device, more_warpers(model)))
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
