"""How important each thinking token is: one teacher-forced pass, without ever holding an L x L attention matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from dynts.cache.interface import CACHE
from dynts.errors import DyntsError
from dynts.models import input_device
from dynts.models.attention import (
    Softmax,
    attention_logits,
    check_shown,
    observed_attention,
    scaled_products,
    softmax_over_keys,
)
from dynts.models.pieces import piece_bytes
from dynts.models.shape import FORGETFUL, full_attention_layers
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS, Queries, check_window, find_labels
from dynts.traces.tokens import TokenizedTrace

_SUMS_AT_ONCE = 1 << 25
"""Attention weights that are summed up over layers and heads at once, 128 MiB: tokens of a forward pass times keys."""


@dataclass(frozen=True, slots=True)
class LabelledTrace:
    """What was found of the labelled tokens of a trace.

    Attributes:
        hidden: [L, d], in the model's dtype.
        labels: float32 by name: [L], native ones [L, full-attention layers, KV heads].
    """

    hidden: torch.Tensor
    labels: dict[str, torch.Tensor]


@torch.no_grad()
def label_trace(
    model: PreTrainedModel,
    trace: TokenizedTrace,
    labels: Sequence[str] = SHARED_LABELS,
    *,
    chunk: int = 128,
    future_window: int = FUTURE_WINDOW,
    all_tokens: bool = False,
) -> LabelledTrace:
    """Label the thinking tokens of one trace (arXiv 2601.18383, section 3).

    With alpha[i -> j] the attention weight of token i on token j, averaged over full-attention layers and query heads
    (sliding-window layers evict by themselves, so they do not count):

    - "answer": the mean of alpha[i -> j] over the answer tokens i.
    - "future": the maximum of alpha[i -> j] over all later tokens i with i - j > `future_window`, in thinking, closing
      marker or answer. NaN where there is no such token.
    - "answer-native", "future-native": the same with alpha averaged over the query heads of one KV head in one layer.

    Args:
        model: a causal language model with "sdpa" or "eager" attention.
        trace: token ids and their spans.
        labels: names of `dynts.predictor.label.LABELS`.
        chunk: at most so many rows of a layer's attention are held at a time. Does not change the result.
        future_window: the local window that "future" leaves out, in tokens.
        all_tokens: label the tokens of question, closing marker and answer too. What the question's tokens attend to
            does not count for any label.

    Raises:
        DyntsError: unknown label, or a chunk or window that is not positive.
        UnsupportedError: no layer has full attention, or its weights cannot be observed.
    """
    chosen = find_labels(labels)
    check_window(future_window)
    if chunk < 1:
        raise DyntsError(f"chunk must be at least 1 token, got {chunk}")
    total = len(trace.ids)
    layers = full_attention_layers(model.config.get_text_config())

    def reduced(granularity: str) -> _Reduced:
        queries = frozenset(label.queries for label in chosen if label.granularity == granularity)
        return _Reduced(queries, trace.answer_start, future_window, total)

    shared, native = reduced("shared"), {layer: reduced("native") for layer in layers}
    # the question's rows are never needed, and without the future label neither are those of the thinking
    observed_from = trace.question_end if any(label.looks_ahead for label in chosen) else trace.answer_start
    rows = _Rows(shared, native, observed_from, chunk)
    at_once = total if model.config.model_type in FORGETFUL else max(chunk, _SUMS_AT_ONCE // total)
    cache = DynamicCache(config=model.config) if at_once < total else None
    decoder = model.get_decoder()
    ids = torch.tensor([trace.ids], device=input_device(model))
    positions = torch.arange(total, device=ids.device)[None]  # in transformers 5.24 Bamba counts each from 0
    labelled = labelled_span(trace, all_tokens)
    hidden = []
    with observed_attention(model):
        for start in range(0, total, at_once):
            output = decoder(
                input_ids=ids[:, start : start + at_once],
                position_ids=positions[:, start : start + at_once],
                **{CACHE: cache},
                use_cache=cache is not None,
                attention_observer=rows,
            )
            check_shown(model, rows.seen, layers, "labels are made of attention weights; choose another base model")
            rows.reduce()
            first, last = max(labelled.start - start, 0), max(labelled.stop - start, 0)
            hidden.append(output.last_hidden_state[0, first:last])
    found = {}
    for label in chosen:
        if label.granularity == "shared":
            values = shared.values[label.queries].cpu() / len(layers)
        else:  # layers may lie on different devices
            values = torch.stack([native[layer].values[label.queries].cpu() for layer in layers]).permute(2, 0, 1)
        values = values[labelled].contiguous()
        if label.queries == "answer":
            found[label.name] = values / (total - trace.answer_start)
        else:
            found[label.name] = values.masked_fill(values.isneginf(), torch.nan)
    return LabelledTrace(hidden=torch.cat(hidden), labels=found)


def labelled_span(trace: TokenizedTrace, all_tokens: bool) -> slice:
    """Return the tokens that have labels: those of the thinking, or all.

    Args:
        trace: the trace.
        all_tokens: whether all tokens have labels.
    """
    return slice(0, len(trace.ids)) if all_tokens else slice(trace.question_end, trace.thinking_end)


@dataclass(slots=True)
class _Reduced:
    """Labels of the tokens so far, of all heads together or of each of a layer; that of the answer is a sum yet.

    Attributes:
        values: float32 [..., tokens] by the queries, on the device of the weights.
    """

    queries: frozenset[Queries]
    answer_start: int
    future_window: int
    tokens: int
    values: dict[Queries, torch.Tensor] = field(default_factory=dict, init=False)

    def add(self, weights: torch.Tensor) -> None:
        """Reduce rows of attention weights, which may change.

        Args:
            weights: [..., rows, keys], the rows being those of the last of these keys.
        """
        rows, keys = weights.shape[-2:]
        start = keys - rows
        if "answer" in self.queries:
            known = self._known("answer", weights, 0.0)
            if keys > self.answer_start:
                known += weights[..., max(self.answer_start - start, 0) :, :].sum(dim=-2)
        if "later" in self.queries:
            known = self._known("later", weights, -torch.inf)
            near = max(start - self.future_window, 0)
            hidden = torch.ones(rows, keys - near, dtype=torch.bool, device=weights.device)
            weights[..., near:].masked_fill_(hidden.triu_(start - self.future_window - near), -torch.inf)
            torch.maximum(known, weights.amax(dim=-2), out=known)

    def _known(self, queries: Queries, weights: torch.Tensor, fill: float) -> torch.Tensor:
        """Return the values of the keys of these weights."""
        if queries not in self.values:
            self.values[queries] = weights.new_full((*weights.shape[:-2], self.tokens), fill)
        return self.values[queries][..., : weights.shape[-1]]


@dataclass(slots=True)
class _Rows:
    """Observer: attention weights, a chunk of rows at a time.

    Those of each KV head are reduced at once, by layer. The means over the query heads wait for the other layers of
    the forward pass, [new tokens, all tokens].
    """

    shared: _Reduced
    native: dict[int, _Reduced]
    observed_from: int
    chunk: int
    seen: list[int] = field(default_factory=list, init=False)
    sums: torch.Tensor | None = field(default=None, init=False)

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> None:
        if layer not in self.native:
            return
        self.seen.append(layer)
        (heads, new), keys = query.shape[1:3], key.shape[2]
        before = keys - new
        start = max(before, self.observed_from)
        if start >= keys:
            return
        rows = min(self.chunk, max(1, piece_bytes(query.device) // (4 * heads * keys)))
        if query.device.type == "cpu":
            query, key = query.float(), key.float()
        for first in range(start, keys, rows):
            last = min(first + rows, keys)
            asking = query[:, :, first - before : last - before]
            self._add(layer, _causal_weights(asking, key[:, :, :last], softmax), first - start, keys - start)

    def _add(self, layer: int, weights: torch.Tensor, first: int, rows: int) -> None:
        """Take the weights of some rows: `rows` are observed in this forward pass, these begin at the `first` one."""
        native = self.native[layer]
        if native.queries:
            weights = weights.mean(dim=1, keepdim=True)
        if self.shared.queries:
            mean = weights.mean(dim=(0, 1))
            here, keys = mean.shape
            if self.sums is None:
                self.sums = mean.new_zeros(rows, keys - here - first + rows)
            # layers may lie on different devices
            self.sums[first : first + here, :keys] += mean.to(self.sums.device)
        if native.queries:
            native.add(weights.squeeze(1))

    def reduce(self) -> None:
        """Reduce the weights of a forward pass, when all layers have shown theirs."""
        if self.sums is not None:
            rows, keys = self.sums.shape
            for first in range(0, rows, self.chunk):
                part = self.sums[first : first + self.chunk]
                self.shared.add(part[:, : keys - rows + first + len(part)])
        self.seen, self.sums = [], None


def _causal_weights(query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> torch.Tensor:
    """Return float32 attention weights [KV heads, group, rows, keys], in as few passes over them as possible.

    Args:
        query: [1, query heads, rows, head size], of the last tokens.
        key: [1, KV heads, keys, head size].
        softmax: of the layer.
    """
    rows, keys = query.shape[2], key.shape[2]
    if softmax.softcap is None:
        logits = scaled_products(query, key, softmax.scaling)[0]
    else:
        logits = attention_logits(query, key, softmax)[0]
    later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu_(1)
    logits[..., keys - rows :].masked_fill_(later, -torch.inf)
    return softmax_over_keys(logits, softmax.grouped_sinks(key.shape[1]))
