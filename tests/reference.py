"""A slow, independent reference of decoding with evictions, without any cache.

Every decode step is one full forward over the whole token sequence so far, evicted tokens included, under a mask that
lets each token see exactly what was cached when it was fed. Nothing here comes from the package under test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

ATTENTION_NAME = "reference_masked"

# Above any position: separates the ranks of the purely positional methods.
TIER = 1_000_000


@dataclass
class Turn:
    """Tokens to feed in one prefill, then the number of tokens to generate."""

    tokens: list[int]
    new_tokens: int


@dataclass
class ReferenceRun:
    """What a run generated and evicted.

    `compactions` holds (step, before, after) over all turns, `step` counting from 0 in each. `kept_positions` has
    shape [kept] (shared) or [full-attention layers, KV heads, kept] (native), ascending. `margins` is, per compaction,
    the smallest gap between a token kept by its score and a token evicted (inf if nothing was contested): a difference
    from another implementation with a margin near rounding is no error.
    """

    tokens: list[list[int]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    compactions: list[tuple[int, int, int]] = field(default_factory=list)
    kept_positions: list[Tensor] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------------
# Masked attention


@dataclass
class LayerRecord:
    """What one layer computed in the last forward, over the whole sequence T.

    queries [heads, T, d] and keys [kv_heads, T, d] after RoPE; values [kv_heads, T, d]; weights [heads, T, T]; sinks
    [heads], if it has any.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor
    scaling: float
    softcap: float | None
    sinks: Tensor | None


@dataclass
class Pass:
    """One forward's masks (full-attention layers: [kv_heads, T, T], True where visible) and its records."""

    visible: dict[int, Tensor]
    windows: list[int | None]
    records: dict[int, LayerRecord] = field(default_factory=dict)


_CURRENT: list[Pass] = []


@contextmanager
def _current(this: Pass) -> Iterator[Pass]:
    _CURRENT.append(this)
    try:
        yield this
    finally:
        _CURRENT.pop()


def attention_logits(queries: Tensor, keys: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """The logits as the model's softmax gets them: scaled, and soft-capped where the model does that."""
    logits = queries.float() @ keys.float().transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the keys. A sink, one for each of the first dimension, gets its share as if it were a key."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    sink = sinks.double().view(-1, *[1] * (logits.ndim - 1))
    largest = torch.maximum(logits.amax(dim=-1, keepdim=True).double(), sink)
    shares = torch.exp(logits.double() - largest)
    return (shares / (torch.exp(sink - largest) + shares.sum(dim=-1, keepdim=True))).float()


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention under the current pass's masks; one that a model makes by itself is added to the logits."""
    this = _CURRENT[-1]
    layer = -1 if module.layer_idx is None else int(module.layer_idx)  # type: ignore[arg-type]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length, group = query.shape[2], query.shape[1] // key.shape[1]
    window = this.windows[layer]
    if window is None:
        shown = this.visible.get(layer, next(iter(this.visible.values())))
        visible = shown.repeat_interleave(group, dim=0)
    else:
        at = torch.arange(length, device=query.device)
        distance = at[:, None] - at[None, :]
        visible = ((distance >= 0) & (distance < window))[None]
    keys = key[0].repeat_interleave(group, dim=0)
    values = value[0].repeat_interleave(group, dim=0)
    logits = attention_logits(query[0], keys, scaling, softcap)
    if attention_mask is not None:
        logits = logits + attention_mask[0]
    weights = softmax(logits.masked_fill(~visible, -math.inf), s_aux)
    output = weights @ values.float()
    this.records[layer] = LayerRecord(query[0], key[0], value[0], weights, scaling, softcap, s_aux)
    return output.transpose(0, 1)[None].to(query.dtype).contiguous(), weights[None]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The masks come from the current pass."""


AttentionInterface.register(ATTENTION_NAME, masked_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


def layer_windows(config: Any) -> list[int | None]:
    """The sliding window of each layer, None for full attention."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def full_attention_layers(config: Any) -> list[int]:
    """The layers whose attention reaches back to the first token. The others keep a window, a state, or nothing."""
    types = getattr(config, "layer_types", None)
    if types is None:
        return [layer for layer, window in enumerate(layer_windows(config)) if window is None]
    return [layer for layer, kind in enumerate(types) if kind in ("full_attention", "hybrid")]


def replica(model: PreTrainedModel) -> PreTrainedModel:
    """A float32 copy with the reference attention.

    Built afresh rather than deep-copied, so that no hook that someone put on `model` comes along.
    """
    with torch.random.fork_rng(devices=[]):
        twin = type(model)(copy.deepcopy(model.config))
    twin.to(device=model.device, dtype=torch.float32)
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation(ATTENTION_NAME)
    return twin.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads only slow matrices of this size down, on a busy machine by a factor of ten."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def masked_forward(model: PreTrainedModel, tokens: Sequence[int], this: Pass) -> tuple[Tensor, Tensor]:
    """Logits [T, vocab] and last hidden states after the final norm [T, d] of one forward without a cache."""
    hidden: list[Tensor] = []
    handle = model.get_decoder().register_forward_hook(lambda _m, _i, output: hidden.append(output.last_hidden_state))
    ids = torch.tensor([list(tokens)], device=model.device)
    positions = torch.arange(len(tokens), device=model.device)[None]
    try:
        with _current(this):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    finally:
        handle.remove()
    return logits[0].float(), hidden[0][0].float()


# ---------------------------------------------------------------------------------------------------------------------
# Scores, for one KV head with n cached tokens, in cache order


def max_pool(scores: Tensor, kernel: int) -> Tensor:
    """Maximum over the `kernel` neighbours centred on each entry, cut off at the ends."""
    if kernel % 2 == 0:
        raise ValueError(f"same padding needs an odd kernel, got {kernel}")
    half = kernel // 2
    pooled = [scores[max(0, j - half) : j + half + 1].max() for j in range(len(scores))]
    return torch.stack(pooled) if pooled else scores


def snapkv_scores(logits: Tensor, kernel: int, sinks: Tensor | None = None) -> Tensor:
    """SnapKV: logits [group, w, n - w] of the last w queries on the keys before them, sinks [group] -> [n - w]."""
    return max_pool(softmax(logits.float(), sinks).mean(dim=(0, 1)), kernel)


def rkv_attention(logits: Tensor, kernel: int, sinks: Tensor | None = None) -> Tensor:
    """R-KV's A: logits [group, w, n - w], sinks [group] -> [n - w]; a group's maximum comes before the softmax."""
    largest = None if sinks is None else sinks.max().expand(logits.shape[1])
    return max_pool(softmax(logits.float().amax(dim=0), largest).mean(dim=0), kernel)


def rkv_similarity(keys: Tensor) -> Tensor:
    """Cosine similarities [n, n] of keys [n, d]: zero diagonal, and row by row the last one above 0.5 exempted."""
    unit = keys.float() / keys.float().norm(dim=-1, keepdim=True)
    similarity = unit @ unit.T
    for i in range(len(keys)):
        similarity[i, i] = 0.0
    for i in range(len(keys)):
        above = [j for j in range(len(keys)) if similarity[i, j] > 0.5]
        if above:
            similarity[i, above[-1]] = 0.0
    return similarity


def rkv_redundancy(keys: Tensor) -> Tensor:
    """R-KV's R over all n cached keys [n, d] -> [n]."""
    return torch.softmax(rkv_similarity(keys).mean(dim=0), dim=-1)


def rkv_scores(logits: Tensor, keys: Tensor, kernel: int, mix: float, sinks: Tensor | None = None) -> Tensor:
    """R-KV: logits [group, w, n - w], all n keys [n, d], sinks [group] -> scores [n - w]."""
    attention = rkv_attention(logits, kernel, sinks)
    return mix * attention - (1 - mix) * rkv_redundancy(keys)[: len(attention)]


def keydiff_scores(keys: Tensor) -> Tensor:
    """KeyDiff: keys [n, d] -> minus the cosine similarity of each to the mean of the keys of length one [n]."""
    unit = keys.double() / keys.double().norm(dim=-1, keepdim=True)
    anchor = unit.mean(dim=0)
    return -(unit @ anchor) / anchor.norm()


def vase_scores(keys: Tensor, values: Tensor, projection: Tensor) -> Tensor:
    """VaSE-DKV: keys and values [n, d], projection [d, r] -> products of squared lengths, which add up to one [n]."""
    key_squares = (keys.double() @ projection.double()).norm(dim=-1) ** 2
    value_squares = (values.double() @ projection.double()).norm(dim=-1) ** 2
    return key_squares * value_squares / (key_squares * value_squares).sum()


@dataclass
class QueryStatistics:
    """Of queries before RoPE, as complex pairs: mean and mean length [layers, heads, f]; RoPE's own numbers."""

    mean: Tensor
    length: Tensor
    frequencies: Tensor
    scaling: float


def triattention_scores(
    keys: Tensor, positions: Sequence[int], read: int, known: QueryStatistics, layer: int, head: int
) -> Tensor:
    """TriAttention of one query head: rotated keys [n, d] at positions [n] -> [n], before they are standardised."""
    at = torch.tensor(positions, dtype=torch.float64)
    frequencies, mean = known.frequencies.double(), known.mean[layer, head].to(torch.complex128)
    half = keys.shape[-1] // 2
    rotated = torch.complex(keys[:, :half].double(), keys[:, half:].double()) / known.scaling
    plain = rotated * torch.exp(-1j * at[:, None] * frequencies)
    angle = torch.angle(mean * plain.conj())
    series = torch.zeros(len(positions), dtype=torch.float64)
    for power in range(17):
        distance = read + 2**power - at
        series += (mean.abs() * plain.abs() * torch.cos(distance[:, None] * frequencies + angle)).sum(dim=-1) / 17
    extra = ((known.length[layer, head].double() - mean.abs()) * plain.abs()).sum(dim=-1)
    return known.scaling**2 * (series + extra)


def select(
    scores: dict[int, float], target: int, local_window: int, protected: Collection[int]
) -> tuple[list[int], float]:
    """The `target` positions that stay, ascending, and the margin of the choice.

    The last `local_window` cached and the protected ones stay in any case; the other places go by score, the later
    token first among equals.
    """
    cached = sorted(scores)
    certain = set(cached[len(cached) - local_window :]) if local_window else set()
    certain |= set(protected) & set(cached)
    contested = sorted((p for p in cached if p not in certain), key=lambda p: (scores[p], p), reverse=True)
    places = target - len(certain)
    if places < 0:
        raise ValueError(f"{len(certain)} tokens must stay but there is room for {target}")
    chosen, dropped = contested[:places], contested[places:]
    margin = math.inf
    if chosen and dropped and scores[chosen[-1]] != math.inf:
        margin = scores[chosen[-1]] - scores[dropped[0]]
    elif chosen and dropped:
        margin = 0.0 if scores[dropped[0]] == math.inf else math.inf
    return sorted([*certain, *chosen]), margin


def answer_flags(stream: Sequence[int], fed: int, think_start: Sequence[int], think_end: Sequence[int]) -> list[bool]:
    """Which tokens of one turn's stream (its first `fed` were fed, the rest generated) belong to the answer."""

    def completed(at: int, marker: Sequence[int]) -> bool:
        return len(marker) > 0 and list(stream[: at + 1][-len(marker) :]) == list(marker)

    flags = []
    last_start = last_end = -1
    for i in range(len(stream)):
        # The markers as of the tokens strictly before this one.
        flags.append(i >= fed and last_end > last_start)
        if completed(i, think_start):
            last_start = i
        if completed(i, think_end):
            last_end = i
    return flags


# ---------------------------------------------------------------------------------------------------------------------
# Decoding


class _Run:
    """State of one run. A "head" is a (layer, KV head) pair of a full-attention layer."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        method: str,
        budget: int,
        local_window: int,
        retention_ratio: float,
        threshold: float | None,
        granularity: str,
        protect_question: bool,
        window: int | None,
        kernel: int,
        mix: float,
        n_sink: int,
        n_initial: int,
        predictor: Callable[[Tensor], Tensor] | None,
        random_scores: Tensor | Sequence[float] | None,
        projections: Callable[[int], Tensor] | None,
        statistics: QueryStatistics | None,
        think_start: Sequence[int],
        think_end: Sequence[int],
        separators: Collection[int],
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}")
        if granularity not in ("shared", "native"):
            raise ValueError(f"unknown granularity {granularity!r}")
        self.model = replica(model)
        self.rule, self.granularity = METHODS[method], granularity
        self.budget, self.local_window, self.retention_ratio = budget, local_window, retention_ratio
        self.threshold = threshold
        # generated tokens fed since the latest compaction, and how many make the next one due
        self.taken, self.interval = 0, 0
        self.protect = protect_question or self.rule.question
        self.observed = min(window or self.rule.window, max(local_window, 1))
        self.kernel, self.mix = kernel, mix
        self.n_sink, self.n_initial, self.separators = n_sink, n_initial, separators
        self.predictor, self.random_scores = predictor, random_scores
        self.projections, self.statistics = projections, statistics
        self.think_start, self.think_end = think_start, think_end

        self.windows = layer_windows(model.config)
        self.layers = full_attention_layers(model.config)
        if not self.layers:
            raise ValueError("the model has no full-attention layer")
        self.kv_heads = self._count_kv_heads()
        self.heads = [(layer, head) for layer in self.layers for head in range(self.kv_heads[layer])]

        self.tokens: list[int] = []
        self.question: set[int] = set()
        self.answer: set[int] = set()
        self.cached: dict[tuple[int, int], list[int]] = {h: [] for h in self.heads}
        self.visible = {layer: torch.zeros(self.kv_heads[layer], 0, 0, dtype=torch.bool) for layer in self.layers}
        self.received: dict[tuple[int, int], dict[int, float]] = {h: {} for h in self.heads}
        self.predicted: list[Any] | None = None if predictor is None else []
        self.records: dict[int, LayerRecord] = {}
        self.result = ReferenceRun()

    @property
    def count(self) -> int:
        """Cached tokens: the same number in every layer and head."""
        counts = {len(positions) for positions in self.cached.values()}
        assert len(counts) == 1
        return counts.pop()

    def feed(self, new: Sequence[int], *, decoding: bool) -> Tensor:
        """Append tokens, run the whole sequence, update the scores; returns the last token's logits."""
        first = len(self.tokens)
        self.tokens += new
        total = len(self.tokens)
        # Earlier rows never change: a token goes on seeing what it saw when it was fed.
        self.visible = {i: nn.functional.pad(mask, (0, total - first) * 2) for i, mask in self.visible.items()}
        for layer, head in self.heads:
            for position in range(first, total):
                self.cached[layer, head].append(position)
                self.visible[layer][head, position, self.cached[layer, head]] = True
        this = Pass({i: mask.to(self.model.device) for i, mask in self.visible.items()}, self.windows)
        logits, hidden = masked_forward(self.model, self.tokens, this)
        self.records = this.records
        self.taken += len(new) if decoding else 0

        if self.predictor is not None and self.predicted is not None:
            with torch.no_grad():
                self.predicted += self.predictor(hidden[first:]).float().tolist()
        if decoding:
            for layer, head in (each for each in self.heads if each[0] in self.records):
                row = self._group(layer, self.records[layer].weights, head)[:, -1].mean(dim=0)
                sums = self.received[layer, head]
                for position in self.cached[layer, head]:
                    sums[position] = sums.get(position, 0.0) + float(row[position])
        return logits[-1]

    def _count_kv_heads(self) -> dict[int, int]:
        """The heads that the keys of each full-attention layer have: a token that sees itself tells."""
        this = Pass({}, [1] * len(self.windows))
        masked_forward(self.model, [1], this)
        # layers that share a module have one number, and the masks of all layers are alike there
        some = next(iter(this.records.values()))
        return {layer: len(this.records.get(layer, some).keys) for layer in self.layers}

    def _group(self, layer: int, tensor: Tensor, head: int) -> Tensor:
        """The query heads that share KV head `head` of a layer."""
        size = tensor.shape[0] // self.kv_heads[layer]
        return tensor[head * size : (head + 1) * size]

    def _head_scores(self, layer: int, head: int) -> list[float]:
        """Scores of what one KV head has cached, in cache order."""
        positions = self.cached[layer, head]
        scores = self.rule.scores(self, layer, head, positions)
        if not self.rule.answer:
            return scores
        return [math.inf if p in self.answer else score for p, score in zip(positions, scores, strict=True)]

    def own(self, table: Any, layer: int, head: int, positions: Sequence[int]) -> list[float]:
        """Entries of a table [positions], with native granularity [positions, full-attention layers, KV heads]."""
        if table is None:
            raise ValueError("this method needs a predictor, or random_scores")
        if self.granularity == "native":
            return [float(table[p][self.layers.index(layer)][head]) for p in positions]
        return [float(table[p]) for p in positions]

    def seen(self, layer: int, head: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The logits [group, w, n - w] of the last w queries on the keys before them, and all n keys [n, d]."""
        record, before = self.records[layer], max(len(positions) - self.observed, 0)
        keys = record.keys[head][list(positions)]
        queries = self._group(layer, record.queries, head)[:, list(positions[before:])]
        return attention_logits(queries, keys[:before], record.scaling, record.softcap), keys

    def sinks(self, layer: int, head: int) -> Tensor | None:
        """The sinks [group] of the query heads that share a KV head."""
        sinks = self.records[layer].sinks
        return None if sinks is None else self._group(layer, sinks, head)

    def with_window(self, score: Callable[[], Tensor], positions: Sequence[int]) -> list[float]:
        """Scores of the keys before the observation window, whose own tokens rank above all."""
        if len(positions) <= self.observed:
            return [math.inf] * len(positions)
        return score().tolist() + [math.inf] * self.observed

    def compact(self, target: int, step: int) -> None:
        """Evict all but `target` tokens in every layer and head."""
        before = self.count
        scores = {h: self._head_scores(*h) for h in self.heads}
        if self.granularity == "shared":
            # Added up one head after another: tokens that tie in each head then tie exactly in the mean too.
            mean = [sum(column) / len(self.heads) for column in zip(*scores.values(), strict=True)]
            scores = dict.fromkeys(self.heads, mean)
        protected = self.question if self.protect else set()
        margins = []
        if self.threshold is not None:
            distances = [abs(score - self.threshold) for own in scores.values() for score in own]
            margins.append(min(distances))
            target = min(target, max(self._worth_keeping(h, scores[h], protected) for h in self.heads))
            self.taken, self.interval = 0, self._taken_in()
            if target == before:
                return
        for h in self.heads:
            by_position = dict(zip(self.cached[h], scores[h], strict=True))
            self.cached[h], margin = select(by_position, target, self.local_window, protected)
            self.received[h] = {p: s for p, s in self.received[h].items() if p in set(self.cached[h])}
            margins.append(margin)
        kept = torch.tensor([self.cached[h] for h in self.heads])
        if self.granularity == "shared":
            self.result.kept_positions.append(kept[0])
        else:
            self.result.kept_positions.append(kept.view(len(self.layers), self.kv_heads[self.layers[0]], -1))
        self.result.margins.append(min(margins))
        self.result.compactions.append((step, before, self.count))

    def _selected(self) -> int:
        """k, the places that go by score, for the question tokens fed so far."""
        room = self.budget - self.local_window - len(self.question)
        if room < 1:
            raise ValueError(f"question and local window leave no place in a budget of {self.budget}")
        return math.floor(self.retention_ratio * room)

    def _worth_keeping(self, h: tuple[int, int], scores: Sequence[float], protected: Collection[int]) -> int:
        """How many tokens a head must keep whatever the threshold, or scores above it."""
        assert self.threshold is not None
        recent = self.cached[h][-self.local_window :]
        pairs = zip(self.cached[h], scores, strict=True)
        return sum(p in recent or p in protected or score > self.threshold for p, score in pairs)

    def _taken_in(self) -> int:
        """How many tokens a schedule without a threshold takes in between two compactions."""
        return self.budget - self.local_window - len(self.question) - self._selected()

    def _compact_if_full(self, step: int) -> None:
        if not self.rule.evicts:
            return
        if self.count > self.budget:
            raise ValueError(f"{self.count} cached tokens exceed the budget of {self.budget}")
        if self.count == self.budget:
            self.compact(len(self.question) + self._selected() + self.local_window, step)
        elif self.threshold is not None and self.taken >= self.interval:
            self.compact(self.count, step)

    def turn(self, turn: Turn, pending: int | None, forced: Sequence[int] | None) -> int | None:
        """Run one turn; `pending` is the last turn's unfed token. Returns this turn's unfed token."""
        fed = [*([] if pending is None else [pending]), *turn.tokens]
        if not fed:
            raise ValueError("a turn needs a token to feed")
        if forced is not None and len(forced) != turn.new_tokens:
            raise ValueError(f"{len(forced)} forced tokens for a turn of {turn.new_tokens}")
        old = len(self.question)
        self.question |= set(range(len(self.tokens), len(self.tokens) + len(fed)))
        if self.rule.evicts and old == 0:
            # the local window fills first
            self.interval = self.local_window + self._taken_in()
        if self.rule.evicts and self.count > 0 and self.count + len(fed) > self.budget:
            self.compact(min(self.count, old + self._selected() + self.local_window), step=0)

        first = len(self.tokens)
        logits = self.feed(fed, decoding=False)
        self._compact_if_full(step=0)
        generated: list[int] = []
        rows: list[Tensor] = []
        for step in range(turn.new_tokens):
            if step > 0:
                # Known before the forward, because only the tokens before it count.
                if answer_flags([*fed, *generated], len(fed), self.think_start, self.think_end)[-1]:
                    self.answer.add(first + len(fed) + len(generated) - 1)
                logits = self.feed(generated[-1:], decoding=True)
                self._compact_if_full(step)
            rows.append(logits)
            generated.append(int(logits.argmax()) if forced is None else int(forced[step]))
        self.result.tokens.append(generated)
        self.result.logits.append(torch.stack(rows).cpu() if rows else torch.empty(0, logits.shape[-1]))
        return generated[-1] if generated else None


# ---------------------------------------------------------------------------------------------------------------------
# The methods, a row each


@dataclass(frozen=True)
class Rule:
    """One method: the scores of what a KV head has cached, in cache order, and what it does beside scoring.

    `question` and `answer` say whether it keeps them by itself; `window` is its observation window.
    """

    scores: Callable[[_Run, int, int, list[int]], list[float]]
    question: bool = False
    answer: bool = False
    window: int = 1
    evicts: bool = True


def _snapkv(run: _Run, layer: int, head: int, cached: list[int]) -> list[float]:
    sinks = run.sinks(layer, head)
    return run.with_window(lambda: snapkv_scores(run.seen(layer, head, cached)[0], run.kernel, sinks), cached)


def _rkv(run: _Run, layer: int, head: int, cached: list[int]) -> list[float]:
    sinks = run.sinks(layer, head)
    return run.with_window(lambda: rkv_scores(*run.seen(layer, head, cached), run.kernel, run.mix, sinks), cached)


def _keydiff(run: _Run, layer: int, head: int, cached: list[int]) -> list[float]:
    return keydiff_scores(run.records[layer].keys[head][cached]).tolist()


def _vase(run: _Run, layer: int, head: int, cached: list[int]) -> list[float]:
    if run.projections is None:
        raise ValueError("vase needs projections")
    record, projection = run.records[layer], run.projections(len(run.tokens))[run.layers.index(layer)]
    scores = vase_scores(record.keys[head][cached], record.values[head][cached], projection).tolist()
    return [math.inf if p < run.n_sink else score for p, score in zip(cached, scores, strict=True)]


def _triattention(run: _Run, layer: int, head: int, cached: list[int]) -> list[float]:
    if run.statistics is None:
        raise ValueError("triattention needs statistics of queries")
    keys, place = run.records[layer].keys[head][cached], run.layers.index(layer)
    competing = torch.tensor([not (run.protect and p in run.question) for p in cached])
    group = run.statistics.mean.shape[1] // run.kv_heads[layer]
    standardised = []
    for query_head in range(head * group, (head + 1) * group):
        scores = triattention_scores(keys, cached, len(run.tokens), run.statistics, place, query_head)
        counted = scores[competing]
        standardised.append((scores - counted.mean()) / counted.std(correction=0))
    return torch.stack(standardised).amax(dim=0).tolist()


def _sepllm(run: _Run, position: int) -> int:
    return 2 * TIER if position < run.n_initial else TIER * (run.tokens[position] in run.separators)


METHODS = {
    "full": Rule(lambda run, layer, head, cached: [], evicts=False),
    "dynts": Rule(lambda run, *at: run.own(run.predicted, *at), question=True, answer=True),
    "dynts-all": Rule(lambda run, *at: run.own(run.predicted, *at)),
    "dynts-bottom": Rule(lambda run, *at: [-s for s in run.own(run.predicted, *at)], question=True, answer=True),
    "dynts-random": Rule(lambda run, *at: run.own(run.random_scores, *at), question=True, answer=True),
    "window": Rule(lambda run, layer, head, cached: [*cached]),
    "question-window": Rule(lambda run, layer, head, cached: [*cached], question=True),
    "streaming-llm": Rule(lambda run, layer, head, cached: [p + TIER * (p < run.n_sink) for p in cached]),
    "sepllm": Rule(lambda run, layer, head, cached: [p + _sepllm(run, p) for p in cached]),
    # tokens of a prefill that no decode step has looked at yet have received nothing
    "h2o": Rule(lambda run, layer, head, cached: [run.received[layer, head].get(p, 0.0) for p in cached]),
    "snapkv": Rule(_snapkv, window=32),
    "rkv": Rule(_rkv, window=8),
    "random": Rule(lambda run, *at: run.own(run.random_scores, *at), question=True),
    "keydiff": Rule(_keydiff),
    "vase": Rule(_vase),
    "triattention": Rule(_triattention),
}


def reference_generate(
    model: PreTrainedModel,
    turns: list[Turn],
    *,
    method: str,
    budget: int,
    local_window: int,
    retention_ratio: float,
    threshold: float | None = None,
    granularity: str = "shared",
    protect_question: bool = False,
    window: int | None = None,
    kernel: int = 7,
    mix: float = 0.1,
    n_sink: int = 4,
    n_initial: int = 4,
    predictor: Callable[[Tensor], Tensor] | None = None,
    random_scores: Tensor | Sequence[float] | None = None,
    projections: Callable[[int], Tensor] | None = None,
    statistics: QueryStatistics | None = None,
    think_start: Sequence[int] = (),
    think_end: Sequence[int] = (),
    separators: Collection[int] = (),
    forced: list[list[int]] | None = None,
) -> ReferenceRun:
    """Decode one unpadded sequence over several turns, greedily or along `forced` tokens, evicting by `method`.

    `predictor` maps last hidden states [n, d] to scores [n], with native granularity to [n, full-attention layers, KV
    heads]; `random_scores` is indexed by position; `projections` gives, for the number of tokens read so far, a matrix
    [full-attention layers, d, r]. The model is left untouched. End tokens are not looked at: every turn runs to its
    length.
    """
    run = _Run(
        model,
        method=method,
        budget=budget,
        local_window=local_window,
        retention_ratio=retention_ratio,
        threshold=threshold,
        granularity=granularity,
        protect_question=protect_question,
        window=window,
        kernel=kernel,
        mix=mix,
        n_sink=n_sink,
        n_initial=n_initial,
        predictor=predictor,
        random_scores=random_scores,
        projections=projections,
        statistics=statistics,
        think_start=think_start,
        think_end=think_end,
        separators=separators,
    )
    if forced is not None and len(forced) != len(turns):
        raise ValueError(f"{len(forced)} forced lists for {len(turns)} turns")
    pending: int | None = None
    with _one_thread():
        for index, turn in enumerate(turns):
            pending = run.turn(turn, pending, None if forced is None else forced[index])
    return run.result
