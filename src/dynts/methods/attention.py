"""What the attention-based methods share: that they look at queries, and those of the observation window."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from dynts.cache.columns import rows_of
from dynts.cache.method import Attending, Method, Observed, Surroundings
from dynts.cache.selection import live_slots, right_align
from dynts.cache.slots import Slots
from dynts.errors import DyntsError, check_count
from dynts.methods.heads import HeadwiseMethod
from dynts.models.attention import Softmax


@dataclass
class AttentionMethod(HeadwiseMethod):
    """A method that scores tokens per layer and KV head by the attention that they get."""

    observes_attention: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class KeyMasks:
    """Which keys and queries count.

    Attributes:
        live: bool [batch, slots], the slots that hold a token.
        candidates: bool [batch, slots], the live ones before the observation window.
        asking: bool [batch, window], the queries of the observation window that a row has.
    """

    live: torch.Tensor
    candidates: torch.Tensor
    asking: torch.Tensor


@dataclass
class ObservationWindowMethod(AttentionMethod):
    """A method that recomputes, at a compaction, the attention of the last queries to the cached keys.

    Args:
        window: queries of the observation window. At most `local_window` are used, so that their own tokens always
            stay.
        kernel: odd width of the max-pooling along the keys; 1 for none.
    """

    window: int = 32
    kernel: int = 7
    reads_cache: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, least=1)
        check_count("kernel", self.kernel, least=1)
        if self.kernel % 2 == 0:
            raise DyntsError(f"kernel must be odd, got {self.kernel}")

    def begin(self, surroundings: Surroundings) -> None:
        """Make room for the queries of every layer."""
        self.used_window = min(self.window, max(surroundings.local_window, 1))
        self.queries: list[tuple[torch.Tensor, ...]] = [() for _ in surroundings.layers]
        self.softmaxes: list[Softmax] = []

    def observe_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, how: Attending
    ) -> torch.Tensor | None:
        """Return the queries to remember, [batch, query heads, n, head size]; of a question a copy of the last few.

        Arguments as in `Method`.
        """
        if query.shape[2] == 1:
            return query
        if how.live is None:
            return query[:, :, -self.used_window :].clone()
        # padding asks nothing: each row remembers its own last queries, as it would alone
        kept = self.queries[layer]
        asking = torch.nn.functional.pad(how.live[:, -query.shape[2] :], (len(kept), 0), value=True)
        everything = torch.cat([*kept, query], dim=2)
        index = right_align(asking, min(self.used_window, everything.shape[2]))
        return everything.gather(2, index[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))

    def remember_attention(self, seen: Sequence[Observed]) -> None:
        """Remember the last queries. Argument as in `Method`."""
        self.softmaxes = [observed.how.softmax for observed in seen]
        self.queries = [
            kept if observed.told is None else (*kept, *observed.told.split(1, dim=2))[-self.used_window :]
            for kept, observed in zip(self.queries, seen, strict=True)
        ]

    def take_rows(self, rows: Sequence[tuple[Method, int] | None], columns: int) -> None:
        """Take over the queries, the last ones of each row. Arguments as in `Method`."""
        methods = [None if row is None else (cast(ObservationWindowMethod, row[0]), row[1]) for row in rows]
        self.softmaxes = next(method.softmaxes for method, _ in filter(None, methods))

        def taken(layer: int) -> tuple[torch.Tensor, ...]:
            return rows_of(methods, lambda method: torch.cat(method.queries[layer], dim=2), dim=2).split(1, dim=2)

        self.queries = [taken(layer) for layer in range(len(self.layers))]

    def score(self, slots: Slots) -> torch.Tensor:
        """Score the keys before the observation window; the window's own tokens rank above all."""
        window = len(self.queries[0])
        lengths = slots.live.sum(dim=1)
        candidates = live_slots(lengths - window, slots.live.shape[1])
        # rows that did not have so many tokens yet have fewer queries, the last ones
        asking = ~live_slots(window - lengths, window)

        def score_layer(layer: int) -> torch.Tensor:
            query, key = slots.of_rows(torch.cat(self.queries[layer], dim=2)), slots.keys(layer)
            masks = KeyMasks(*(mask.to(key.device) for mask in (slots.live, candidates, asking)))
            scores = self.score_keys(query, key, masks, self.softmaxes[layer])
            return scores.masked_fill(~masks.candidates[:, None], torch.finfo(scores.dtype).max)

        return self.combine(score_layer, slots.columns.device)

    @abstractmethod
    def score_keys(self, query: torch.Tensor, key: torch.Tensor, masks: KeyMasks, softmax: Softmax) -> torch.Tensor:
        """Score the keys before the observation window.

        Args:
            query: [batch, query heads, window, head size].
            key: [batch, KV heads, slots, head size].
            masks: which slots and queries count.
            softmax: of the layer. Its sinks take their share of a softmax over some of the keys as well: a query that
                attends to none of them much tells little about which to keep.

        Returns:
            float32 [batch, KV heads, slots]; what it says of slots that are no candidates means nothing.
        """

    def pool(self, weights: torch.Tensor) -> torch.Tensor:
        """Max-pool along the last dimension at the same length. weights: [batch, KV heads, keys], not negative."""
        return torch.nn.functional.max_pool1d(weights, self.kernel, stride=1, padding=self.kernel // 2)
