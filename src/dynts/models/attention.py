"""dynts' attention function: decode steps that expand no KV heads, and a look at queries and keys as a model runs.

transformers hands each layer's rotated queries and keys to a registered attention function
(https://huggingface.co/docs/transformers/attention_interface). dynts registers one that shows them to an observer and
then calls the function that the model would have called, so attention weights of a few rows can be recomputed without
forcing eager attention, and the model's own output does not change.
"""

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from dynts.errors import UnsupportedError
from dynts.models.lengths import ByLengths, RowLengths, kernel_by_lengths
from dynts.models.shape import head_size

OBSERVABLE = ("sdpa", "eager")
_PREFIX = "dynts_"
_NOT_GROUPED = ("softcap", "position_bias", "s_aux", "cache")
"""What `grouped_step` does not compute: the model's own attention function does, or refuses. `cache` is a paged one,
which transformers hands to attention functions up to 5.23."""


def implementation_of(model: PreTrainedModel) -> str:
    """Return the model's attention implementation, also while it is wrapped by `observed_attention`."""
    return str(model.config._attn_implementation).removeprefix(_PREFIX)


def is_observed(model: PreTrainedModel) -> bool:
    """Return whether a model is in `observed_attention`."""
    return str(model.config._attn_implementation).startswith(_PREFIX)


def kernel_of(model: PreTrainedModel) -> ByLengths | None:
    """Return the kernel by which decode steps of a model in `observed_attention` attend by lengths; None for none."""
    if model.config._attn_implementation != f"{_PREFIX}sdpa" or not _hands_on(type(model.get_decoder()).forward):
        return None
    return kernel_by_lengths(model.device, model.dtype, head_size(model.config))


@functools.cache
def _hands_on(forward: Callable[..., Any]) -> bool:
    """Return whether a decoder's function takes arguments for its layers: another cannot tell them how to attend."""
    parameters = inspect.signature(forward).parameters.values()
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """How a layer makes attention weights out of dot products.

    Attributes:
        scaling: factor on the dot products.
        softcap: if given, logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        sinks: [query heads], a learned logit of each head that takes its share of the softmax and belongs to no token
            (gpt-oss); None for none.
    """

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def grouped_sinks(self, kv_heads: int) -> torch.Tensor | None:
        """Return the sinks of each KV head's query heads, as a column of their logits: [KV heads, group, 1, 1]."""
        return None if self.sinks is None else self.sinks.view(kv_heads, -1, 1, 1)


class AttentionObserver(Protocol):
    """Called once per layer and forward pass, before attention is computed."""

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> None:
        """See one layer's inputs.

        Args:
            layer: index of the decoder layer.
            query: [batch, query heads, new tokens, head size], after rotary embedding.
            key: [batch, KV heads, cached + new tokens, head size], after rotary embedding.
            softmax: what the layer makes of them.
        """


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, softmax: Softmax, visible: torch.Tensor | None = None
) -> torch.Tensor:
    """Return attention weights in float32, without expanding the KV heads to the query heads.

    Args:
        query: [batch, query heads, rows, head size].
        key: [batch, KV heads, keys, head size].
        softmax: of the layer.
        visible: bool, broadcastable to [batch, KV heads, group, rows, keys]; False hides a key from a row.

    Returns:
        [batch, KV heads, group, rows, keys], where `group` is the number of query heads per KV head. A row that sees no
        key at all is zero.
    """
    logits, sinks = attention_logits(query, key, softmax), softmax.grouped_sinks(key.shape[1])
    if visible is None:
        return softmax_over_keys(logits, sinks)
    weights = softmax_over_keys(logits.masked_fill(~visible, float("-inf")), sinks)
    return weights.masked_fill(~visible, 0.0)


def softmax_over_keys(logits: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return the softmax over the last dimension, of which sinks take their share: float32, shaped as `logits`.

    Args:
        logits: [..., keys].
        sinks: broadcastable to [..., 1]; None for none.
    """
    if sinks is None:
        return logits.softmax(dim=-1, dtype=torch.float32)
    column = sinks.expand(*logits.shape[:-1], 1)
    return torch.cat([logits, column], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1]


def attention_logits(query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> torch.Tensor:
    """Return what the softmax gets of the keys, in float32: [batch, KV heads, group, rows, keys].

    Args:
        query: [batch, query heads, rows, head size].
        key: [batch, KV heads, keys, head size].
        softmax: of the layer.
    """
    logits = scaled_products(query, key, softmax.scaling).float()
    return logits if softmax.softcap is None else torch.tanh(logits / softmax.softcap) * softmax.softcap


def scaled_products(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return scaled dot products in the dtype of queries and keys: [batch, KV heads, group, rows, keys].

    Args:
        query: [batch, query heads, rows, head size].
        key: [batch, KV heads, keys, head size].
        scaling: factor on the dot products.
    """
    batch, query_heads, rows, head_size = query.shape
    heads, keys = key.shape[1:3]
    grouped = query.reshape(batch * heads, (query_heads // heads) * rows, head_size)
    # the factor is part of the product, and so no pass over the logits; with `beta=0` nothing is added
    products = torch.baddbmm(query.new_empty(1), grouped, key.flatten(0, 1).mT, beta=0, alpha=scaling)
    return products.view(batch, heads, query_heads // heads, rows, keys)


def check_shown(model: PreTrainedModel, shown: Collection[int], layers: Collection[int], fix: str) -> None:
    """Refuse a model whose decoder does not hand `attention_observer=` on, so that nobody sees some layers' queries.

    Args:
        model: the model.
        shown: the layers that a forward pass has shown to the observer.
        layers: those that it should have, each once.
        fix: what the user can do instead.

    Raises:
        UnsupportedError: names the layers.
    """
    if sorted(shown) == sorted(layers):
        return
    missing = sorted(set(layers) - set(shown))
    repeated = sorted(layer for layer, times in Counter(shown).items() if times > 1)
    what = "does not show dynts the queries of" if missing else "computes attention several times in"
    which = ", ".join(map(str, missing or repeated))
    raise UnsupportedError(f"{type(model).__name__} {what} its full-attention layers {which}: {fix}")


@contextmanager
def observed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let calls of `model`'s decoder take `attention_observer=`, an `AttentionObserver`, inside this context.

    Raises:
        UnsupportedError: the model's attention implementation is not one of `OBSERVABLE`.
    """
    implementation = model.config._attn_implementation
    if implementation not in OBSERVABLE:
        raise UnsupportedError(
            f"attention implementation {implementation!r} does not show its queries to dynts; "
            f"load the model with attn_implementation= one of {', '.join(OBSERVABLE)}"
        )
    name = f"{_PREFIX}{implementation}"
    AttentionInterface.register(name, _observing(implementation))
    AttentionMaskInterface.register(name, AttentionMaskInterface()[implementation])
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


def grouped_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scaling: float | None = None,
) -> tuple[torch.Tensor, None]:
    """Return the attention of one new token a row.

    The query heads of a KV head stand for the queries of one attention, so that keys and values are read once and never
    expanded.

    Args:
        query: [batch, query heads, 1, head size].
        key: [batch, KV heads, keys, head size].
        value: likewise.
        mask: bool or additive, [batch or 1, 1, 1, keys].
        scaling: factor on the dot products; None is one over the root of the head size.

    Returns:
        [batch, 1, query heads, head size], and None for the weights, as transformers expects of an attention function.
    """
    batch, heads, _, size = query.shape
    if mask is None and query.is_cuda and query.dtype != torch.float32:
        # this splits the keys over the chip, and query heads that stand for queries keep it from that
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2), None
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], size)
    if query.device.type == "cpu" and torch.compiler.is_compiling():
        attended = _spelled_out(grouped, key, value, mask, size**-0.5 if scaling is None else scaling)
    else:
        attended = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.reshape(batch, 1, heads, value.shape[-1]), None


def _spelled_out(
    grouped: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return the same by formula, of which torch.compile makes kernels for few queries; sdpa's are for many."""
    # a write to chosen rows keeps torch.compile from rotating the query anew for every key
    held = torch.empty_like(grouped).index_copy_(0, torch.arange(len(grouped)), grouped).float() * scaling
    weights = []
    # told one by one, the queries of a KV head share one loop over its keys; told at once, each has a loop of its own
    for query in held.unbind(dim=2):
        logits = (query.unsqueeze(2) * key.float()).sum(dim=-1)
        if mask is not None:
            shown = mask[:, :, 0]
            logits = logits.masked_fill(~shown, float("-inf")) if mask.dtype == torch.bool else logits + shown
        weights.append(logits.softmax(dim=-1))
    return torch.stack(weights, dim=2).to(value.dtype) @ value


def _masks_heads(mask: torch.Tensor | None) -> bool:
    """Return whether a model has made a mask or bias of its own for each head."""
    return mask is not None and mask.ndim == 4 and mask.shape[1] > 1


def _softmax_of(module: Any, query: torch.Tensor, mask: torch.Tensor | None, kwargs: dict[str, Any]) -> Softmax:
    """Return how a layer makes its weights, and refuse one whose weights do not follow from queries and keys.

    Raises:
        UnsupportedError: names what else takes part in the softmax.
    """
    sinks = kwargs.get("s_aux")
    others = {
        "attention sinks of its own for each token": sinks is not None and sinks.shape != query.shape[1:2],
        "a mask of its own for each head": _masks_heads(mask),
    }
    for what, present in others.items():
        if present:
            raise UnsupportedError(
                f"{type(module).__name__} adds {what} to the softmax, from which dynts does not know the attention "
                "weights: methods that do not look at attention, such as 'window', work here, in granularity "
                "'shared'"
            )
    return Softmax(kwargs.get("scaling") or query.shape[-1] ** -0.5, kwargs.get("softcap"), sinks)


def _observing(implementation: str) -> Callable[..., Any]:
    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attention_observer: AttentionObserver | None = None,
        row_lengths: RowLengths | None = None,
        **kwargs: Any,
    ) -> Any:
        if attention_observer is not None:
            softmax = _softmax_of(module, query, attention_mask, kwargs)
            # a module that several layers share may not know which of them it is
            attention_observer(-1 if module.layer_idx is None else int(module.layer_idx), query, key, softmax)
        plain = not kwargs.get("dropout") and all(kwargs.get(name) is None for name in _NOT_GROUPED)
        plain = plain and not _masks_heads(attention_mask)
        if implementation == "sdpa" and query.shape[2] == 1 and plain:
            if row_lengths is not None and attention_mask is row_lengths.mask and key.shape == value.shape:
                attended = row_lengths.attend(query, key, value, row_lengths, kwargs.get("scaling"))
                return attended.transpose(1, 2), None
            return grouped_step(query, key, value, attention_mask, kwargs.get("scaling"))
        # eager attention has no registered name: each modeling file brings its own function
        own_eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        forward = AttentionInterface().get_interface(implementation, own_eager)
        return forward(module, query, key, value, attention_mask, **kwargs)

    return attention
