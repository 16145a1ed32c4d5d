"""Which thinking tokens does the answer need? Let a model answer when it sees only some of them.

The experiment behind the Pareto principle of reasoning models (arXiv 2601.18383, section 3): question and thinking are read in
full, then all but a share of the thinking tokens are hidden, and the answer is generated.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel

from dynts.training.tokens import TokenizedTrace


@torch.no_grad()
def answer_from_kept(
    model: PreTrainedModel, trace: TokenizedTrace, kept: torch.Tensor, *, end_token: int, max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers to one trace's question, each from some of its thinking tokens.

    Hidden tokens have been read by the tokens after them, as evicted ones have, and positions stay as they are. The question
    and the marker that closes the thinking are always seen.

    Args:
        model: a causal language model.
        trace: its ids up to `answer_start` are read, the answer is not.
        kept: bool [rows, L]: the thinking tokens that each answer may see.
        end_token: ends an answer.
        max_new_tokens: the longest answer.

    Returns:
        Generated ids of each row, the end token left out.
    """
    rows, read = len(kept), trace.answer_start
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([trace.ids[:read]], device=model.device)
    # the last token before the answer is fed again with each row's own mask
    cast(Any, model)(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    mask = torch.ones(rows, read + max_new_tokens, dtype=torch.long, device=model.device)
    mask[:, trace.question_end : trace.thinking_end] = kept.to(model.device)
    token = ids[:, -1:].expand(rows, 1)
    answers = torch.full((rows, max_new_tokens), end_token, device=model.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=model.device)
    for step in range(max_new_tokens):
        seen = read + step
        position = torch.full((rows, 1), seen - 1, device=model.device)
        output = cast(Any, model)(
            input_ids=token, attention_mask=mask[:, :seen], position_ids=position, past_key_values=cache, use_cache=True
        )
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        ended |= token[:, 0] == end_token
        if ended.all():
            break
        answers[:, step] = torch.where(ended, end_token, token[:, 0])
    return [row[: row.index(end_token)] if end_token in row else row for row in answers.tolist()]


def keep_top(scores: npt.ArrayLike, share: float) -> torch.Tensor:
    """bool [L]: the share of the tokens that scores highest; of equal ones the later."""
    values = np.asarray(scores, dtype=np.float64)
    kept = torch.zeros(len(values), dtype=torch.bool)
    # NaN, a token without a label, ranks lowest
    order = np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable")
    count = round(share * len(values))
    kept[torch.from_numpy(order[len(values) - count :].copy())] = True
    return kept
