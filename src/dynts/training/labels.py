"""How important each thinking token is: one teacher-forced pass, without ever holding an L x L attention matrix."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from transformers import DynamicCache, PreTrainedModel

from dynts.cache.interface import CACHE
from dynts.errors import DyntsError
from dynts.models import input_device
from dynts.models.attention import attention_logits, check_shown, observed_attention
from dynts.models.shape import full_attention_layers
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS, Queries, check_window, find_labels
from dynts.traces.tokens import TokenizedTrace

_PREFIX_CHUNK = 4096


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
        chunk: rows of attention held at a time; memory is O(chunk x N) per layer. Does not change the result.
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
        return _Reduced(queries, trace.answer_start, future_window)

    shared, native = reduced("shared"), {layer: reduced("native") for layer in layers}
    rows = _RowMean(frozenset(layers), native if any(label.granularity == "native" for label in chosen) else {})
    # the question's rows are never needed, and without the future label neither are those of the thinking
    observed_from = trace.question_end if any(label.looks_ahead for label in chosen) else trace.answer_start
    bounds = [*range(0, observed_from, _PREFIX_CHUNK), *range(observed_from, total, chunk), total]
    cache = DynamicCache(config=model.config)
    decoder = model.get_decoder()
    ids = torch.tensor([trace.ids], device=input_device(model))
    labelled = labelled_span(trace, all_tokens)
    hidden = []
    with observed_attention(model):
        for start, end in pairwise(bounds):
            observer = rows if start >= observed_from else None
            output = decoder(input_ids=ids[:, start:end], **{CACHE: cache}, use_cache=True, attention_observer=observer)
            first, last = max(labelled.start - start, 0), max(labelled.stop - start, 0)
            hidden.append(output.last_hidden_state[0, first:last])
            if observer is None:
                continue
            check_shown(model, rows.seen, layers, "labels are made of attention weights; choose another base model")
            shared.add(rows.take())
    found = {}
    for label in chosen:
        if label.granularity == "shared":
            values = shared.values[label.queries]
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
        values: float32 [..., tokens] by the queries.
    """

    queries: frozenset[Queries]
    answer_start: int
    future_window: int
    values: dict[Queries, torch.Tensor] = field(default_factory=dict, init=False)

    def add(self, weights: torch.Tensor) -> None:
        """Reduce rows of attention weights [..., new tokens, all tokens]: those of all heads are too many to keep."""
        rows, keys = weights.shape[-2:]
        start = keys - rows
        if "answer" in self.queries:
            new = weights[..., max(self.answer_start - start, 0) :, :].sum(dim=-2)
            self.values["answer"] = new + self._before("answer", new, 0.0)
        if "later" in self.queries:
            places = torch.arange(keys, device=weights.device)
            far = weights.masked_fill(places[start:, None] - places <= self.future_window, -torch.inf)
            new = far.amax(dim=-2)
            self.values["later"] = torch.maximum(new, self._before("later", new, -torch.inf))

    def _before(self, queries: Queries, new: torch.Tensor, fill: float) -> torch.Tensor:
        """Return the values without the new rows, shaped as those."""
        known = self.values.get(queries)
        if known is None:
            return torch.full_like(new, fill)
        return torch.nn.functional.pad(known, (0, new.shape[-1] - known.shape[-1]), value=fill)


@dataclass(slots=True)
class _RowMean:
    """Observer: attention weights [new tokens, all tokens], averaged over layers and query heads.

    Those of each KV head go to `native`, by layer, at once.
    """

    layers: frozenset[int]
    native: dict[int, _Reduced]
    seen: list[int] = field(default_factory=list, init=False)
    total: torch.Tensor | None = field(default=None, init=False)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None
    ) -> None:
        if layer not in self.layers:
            return
        self.seen.append(layer)
        rows, keys = query.shape[2], key.shape[2]
        logits = attention_logits(query, key, scaling, softcap)[0]
        # in place, and only where a mask hides anything: at 16,000 keys every pass over all weights counts
        later = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)
        logits[..., keys - rows :].masked_fill_(later, float("-inf"))
        weights = logits.softmax(dim=-1)
        if self.native:
            self.native[layer].add(weights.mean(dim=1))
        mean = weights.mean(dim=(0, 1))
        # layers may lie on different devices
        self.total = mean if self.total is None else self.total + mean.to(self.total.device)

    def take(self) -> torch.Tensor:
        assert self.total is not None
        mean = self.total / len(self.layers)
        self.seen, self.total = [], None
        return mean.cpu()
