"""The interface of a compression method: score the cached tokens, the best-scored ones stay."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.slots import Slots
from dynts.errors import DyntsError
from dynts.models.attention import Softmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Granularity = Literal["shared", "native"]


def check_granularity(granularity: object) -> None:
    """Refuse another granularity.

    Raises:
        DyntsError: names the two.
    """
    if granularity not in ("shared", "native"):
        raise DyntsError(f"granularity must be 'shared' or 'native', got {granularity!r}")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a method may need to know before it starts.

    Attributes:
        layers: indices of the full-attention layers, the only ones that are compacted.
        kv_heads: KV heads of a layer, those that this process holds.
        heads_group: the processes that hold the heads of each layer among them (tensor parallelism); None for one that
            has all.
        local_window: tokens that every compaction keeps anyway.
        predictor: maps hidden states [..., hidden size] to scores [...], or None.
        tokenizer: the model's tokenizer, or None.
    """

    layers: list[int]
    kv_heads: int
    local_window: int
    predictor: Callable[[torch.Tensor], torch.Tensor] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    heads_group: "ProcessGroup | None" = None


@dataclass(frozen=True, slots=True, eq=False)
class Attending:
    """How a layer's queries attend in a forward pass.

    Attributes:
        live: bool [batch, cached + new tokens], or None if all keys are tokens.
        generated: False for tokens of a question or a user turn.
        softmax: what the layer makes of queries and keys.
    """

    live: torch.Tensor | None
    generated: bool
    softmax: Softmax


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What a method has seen of a layer's attention in a forward pass.

    Attributes:
        told: what `Method.observe_attention` has returned.
        how: what it was asked with.
    """

    told: torch.Tensor | None
    how: Attending


class Method(ABC):
    """Scores cached tokens. A subclass is a dataclass of settings; `start` gives a copy with the memory for one cache.

    What a method remembers are its attributes. When a forward pass fails they go back to what they were before it: a
    method may set attributes and change lists, but no tensor in place.

    Attributes:
        name: what commands, `dynts.compress` and tables call the method; only those in `dynts.methods.METHODS` need
            one.
        evicts: whether the cache has a budget under this method.
        granularity: "shared": one set of kept tokens for all layers and heads; "native": one per layer and KV head.
        protect_question: whether tokens of questions are kept whatever their score.
        protect_answer: whether tokens after the end of the thinking rank above all others.
        observes_attention: whether `observe_attention` must see every layer's queries and keys.
        reads_cache: whether `score` looks at cached keys or values (`Slots.keys`), and takes them for those that
            attention sees.
        ranks_places: whether a score is no more than a token's place in an order, to which no threshold applies.
        needs_predictor: whether the method cannot work without an importance predictor.
        scores_all_tokens: whether that predictor must have been trained on question and answer tokens too.
        keeping_question: name of the method that is this one with the question protected, where that has a name of its
            own.
    """

    name: ClassVar[str]
    evicts: ClassVar[bool] = True
    granularity: Granularity = "shared"
    protect_question: bool = False
    protect_answer: ClassVar[bool] = False
    observes_attention: ClassVar[bool] = False
    reads_cache: ClassVar[bool] = False
    ranks_places: ClassVar[bool] = False
    needs_predictor: ClassVar[bool] = False
    scores_all_tokens: ClassVar[bool] = False
    keeping_question: ClassVar[str | None] = None

    layers: list[int]
    kv_heads: int
    heads_group: "ProcessGroup | None"

    def start(self, surroundings: Surroundings) -> Self:
        """Return a copy of this method for one cache, remembering nothing.

        Raises:
            DyntsError: something that the method needs is missing.
        """
        started = copy.copy(self)
        started.layers = surroundings.layers
        started.kv_heads = surroundings.kv_heads
        started.heads_group = surroundings.heads_group
        started.begin(surroundings)
        return started

    @property
    def own_heads(self) -> slice:
        """Of a layer's KV heads those that this process holds."""
        first = 0 if self.heads_group is None else self.heads_group.rank() * self.kv_heads
        return slice(first, first + self.kv_heads)

    @property
    def all_heads(self) -> int:
        """KV heads of a layer, those that other processes hold included."""
        return self.kv_heads * (1 if self.heads_group is None else self.heads_group.size())

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse a model that the method's settings do not suit.

        Raises:
            DyntsError: says what does not.
        """

    def begin(self, surroundings: Surroundings) -> None:
        """Set up the memory of a started method."""

    def memory(self) -> dict[str, Any]:
        """Return what this method remembers: its attributes, of lists a copy."""
        return {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go back to what `memory` gave earlier."""
        vars(self).update({name: list(value) if isinstance(value, list) else value for name, value in memory.items()})

    def observe_hidden(self, hidden: torch.Tensor, generated: bool) -> None:
        """See the last hidden states of the tokens just fed, when the forward pass has succeeded.

        Args:
            hidden: [batch, new tokens, hidden size].
            generated: False for tokens of a question or a user turn.
        """

    def observe_attention(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, how: Attending
    ) -> torch.Tensor | None:
        """Return what a layer's queries and keys tell, for `remember_attention`; only if `observes_attention`.

        It changes nothing, for it is asked before anybody knows whether the forward pass succeeds. With a generated
        token of each row all that it does are operations on tensors whose shapes do not change from step to step: a
        recorded step repeats just these.

        Args:
            layer: index into the full-attention layers.
            query: [batch, query heads, new tokens, head size].
            key: [batch, KV heads, cached + new tokens, head size].
            how: they attend.
        """
        return None

    def take_rows(self, rows: "Sequence[tuple[Method, int] | None]", columns: int) -> None:
        """Take over what others remember of rows that become those of this method's cache.

        Args:
            rows: of each row whose it is, this method's own or another's of the same settings, and its number there;
                None for an empty row.
            columns: how many of the last columns there are from now on.
        """

    def remember_attention(self, seen: Sequence[Observed]) -> None:
        """Take in what `observe_attention` has returned of each full-attention layer, when the pass has succeeded."""

    @abstractmethod
    def score(self, slots: Slots) -> torch.Tensor:
        """Score the cached tokens; higher stays longer, and among equals the later token does.

        Returns:
            float32, broadcastable to [groups, batch, heads, slots] (see `Slots`). NaN ranks lowest.
        """

    def compact(self, index: torch.Tensor, rows: torch.Tensor | None, before: int, live: torch.Tensor) -> None:
        """Follow the slots when they move, if the method remembers something per slot.

        Args:
            index: int64 [groups, rows, heads, slots afterwards]: where each slot comes from. With shared granularity,
                or when all heads move alike, there is one group and one head.
            rows: int64 [rows], the rows that move; None for all.
            before: slots before.
            live: bool [rows, slots afterwards], False for slots that hold no token.
        """
