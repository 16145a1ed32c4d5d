"""Which thinking tokens does the answer need? Let a model answer when it sees only some of them.

The experiment behind the Pareto principle of reasoning models (arXiv 2601.18383, section 3): question and thinking are
read in full, then all but a share of the thinking tokens are evicted, and the answer is generated.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from dynts.cache.interface import CACHE
from dynts.models import input_device
from dynts.models.shape import FORGETFUL, full_attention_layers
from dynts.traces.tokens import TokenizedTrace

_PREFIX_CHUNK = 4096


@torch.no_grad()
def answer_from_kept(
    model: PreTrainedModel,
    trace: TokenizedTrace,
    kept: torch.Tensor,
    *,
    end_tokens: Collection[int],
    max_new_tokens: int,
    batch: int = 8,
) -> list[list[int]]:
    """Greedy answers to one trace's question, each from some of its thinking tokens.

    Evicted tokens have been read by the tokens after them, and positions stay as they are. The question and the marker
    that closes the thinking are always kept. Sliding-window layers evict by themselves and keep what they have,
    and a state has seen all tokens.

    The question and thinking are read once; of their cache, answers hold copies of what they keep, and equal rows are
    answered once. So memory is at most that of 1 + `batch` caches of the whole trace.

    Args:
        model: a causal language model.
        trace: its ids up to `answer_start` are read, the answer is not.
        kept: bool [rows, L]: the thinking tokens that each answer may see.
        end_tokens: any of them ends an answer.
        max_new_tokens: the longest answer.
        batch: answers generated at a time; they keep the same number of tokens each.

    Returns:
        Generated ids of each row, the end token left out.

    Raises:
        UnsupportedError: no layer has full attention.
    """
    prefix = _read(model, trace)
    by_size: dict[int, dict[bytes, list[int]]] = {}
    for row, sets in enumerate(kept.numpy(force=True)):
        by_size.setdefault(int(sets.sum()), {}).setdefault(sets.tobytes(), []).append(row)
    answers: list[list[int]] = [[]] * len(kept)
    for equal in (list(rows.values()) for rows in by_size.values()):
        for start in range(0, len(equal), batch):
            chosen = equal[start : start + batch]
            cache = _evict(model, prefix, trace, kept[[rows[0] for rows in chosen]])
            for rows, answer in zip(chosen, _answer(model, cache, trace, end_tokens, max_new_tokens), strict=True):
                for row in rows:
                    answers[row] = answer
    return answers


def answers_by_share(
    model: PreTrainedModel,
    trace: TokenizedTrace,
    scores: Mapping[str, npt.ArrayLike],
    shares: Sequence[float],
    *,
    end_tokens: Collection[int],
    max_new_tokens: int,
    batch: int = 8,
) -> dict[str, list[list[int]]]:
    """Answers from the highest-scored thinking tokens, by what they are scored with, one for each share.

    Args:
        model: as for `answer_from_kept`, as are the others.
        trace: one trace of L thinking tokens.
        scores: [L] each, by name.
        shares: of the thinking tokens to keep, from 0 to 1.
        end_tokens: any of them ends an answer.
        max_new_tokens: the longest answer.
        batch: answers generated at a time.
    """
    kept = torch.stack([keep_top(values, share) for values in scores.values() for share in shares])
    answers = answer_from_kept(model, trace, kept, end_tokens=end_tokens, max_new_tokens=max_new_tokens, batch=batch)
    return {name: answers[at * len(shares) : (at + 1) * len(shares)] for at, name in enumerate(scores)}


def keep_top(scores: npt.ArrayLike, share: float) -> torch.Tensor:
    """Mark the share of the tokens that scores highest, of equal ones the later, as bool [L].

    Args:
        scores: [L].
        share: from 0 to 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    kept = torch.zeros(len(values), dtype=torch.bool)
    # NaN, a token without a label, ranks lowest
    order = np.argsort(np.nan_to_num(values, nan=-np.inf), kind="stable")
    count = round(share * len(values))
    kept[torch.from_numpy(order[len(values) - count :].copy())] = True
    return kept


def _read(model: PreTrainedModel, trace: TokenizedTrace) -> DynamicCache:
    """Read question, thinking and closing marker, but for the last token: each answer starts by reading that."""
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([trace.ids[: trace.answer_start - 1]], device=input_device(model))
    positions = torch.arange(ids.shape[1], device=ids.device)[None]  # in transformers 5.24 Bamba counts each from 0
    at_once = ids.shape[1] if model.config.model_type in FORGETFUL else _PREFIX_CHUNK
    for start in range(0, ids.shape[1], at_once):
        piece = slice(start, start + at_once)
        cast(Any, model.get_decoder())(
            input_ids=ids[:, piece], position_ids=positions[:, piece], **{CACHE: cache}, use_cache=True
        )
    return cache


def _evict(model: PreTrainedModel, prefix: DynamicCache, trace: TokenizedTrace, kept: torch.Tensor) -> DynamicCache:
    """A cache of one row for each row of `kept`, bool [rows, L], which keep the same number of tokens each."""
    rows = len(kept)
    seen = torch.ones(rows, trace.answer_start - 1, dtype=torch.bool, device=kept.device)
    seen[:, trace.question_end : trace.thinking_end] = kept
    columns = seen.nonzero()[:, 1]
    cache = DynamicCache(config=model.config)
    full = full_attention_layers(model.config.get_text_config())
    for index, layer in enumerate(cast(list[Any], prefix.layers)):
        keeps_state = isinstance(layer, LinearAttentionCacheLayerMixin)
        if keeps_state or index not in full:
            own = deepcopy(layer)
            own.reorder_cache(torch.zeros(rows, dtype=torch.long))  # states cannot be repeated otherwise
            cache.layers[index] = own
        if index in full:
            picked = columns.to(layer.keys.device)
            # [heads, rows x tokens, size] to [rows, heads, tokens, size]
            keys, values = (
                states[0].index_select(1, picked).unflatten(1, (rows, -1)).transpose(0, 1)
                for states in (layer.keys, layer.values)
            )
            if keeps_state:
                own.keys, own.values = keys, values
            else:
                cache.update(keys, values, index)
    return cache


def _answer(
    model: PreTrainedModel,
    cache: DynamicCache,
    trace: TokenizedTrace,
    end_tokens: Collection[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Continue greedily from a cache of several rows."""
    layer = cast(Any, cache.layers[full_attention_layers(model.config.get_text_config())[0]])
    rows = layer.keys.shape[0]
    device = input_device(model)
    ends = torch.tensor(sorted(end_tokens), device=device)
    token = torch.full((rows, 1), trace.ids[trace.answer_start - 1], device=device)
    written = torch.zeros(rows, 0, dtype=torch.long, device=device)
    lengths = torch.full((rows,), max_new_tokens, device=device)
    for step in range(max_new_tokens):
        position = torch.full((rows, 1), trace.answer_start - 1 + step, device=device)
        output = cast(Any, model)(input_ids=token, position_ids=position, **{CACHE: cache}, use_cache=True)
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        lengths = torch.where(torch.isin(token[:, 0], ends), lengths.clamp(max=step), lengths)
        if bool((lengths <= step).all()):
            break
        written = torch.cat([written, token], dim=1)
    return [ids[:length] for ids, length in zip(written.tolist(), lengths.tolist(), strict=True)]
