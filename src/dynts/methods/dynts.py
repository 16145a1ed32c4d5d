"""DynTS: keep the thinking tokens that the importance predictor scores highest (arXiv 2601.18383); its ablations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.cache.columns import Columns, rows_of
from dynts.cache.method import Granularity, Method, Surroundings, check_granularity
from dynts.cache.slots import Slots
from dynts.errors import DyntsError, check_count
from dynts.models.pieces import piece_bytes


def predicted_scores(
    predictor: Callable[..., torch.Tensor], hidden: torch.Tensor, native: bool = False
) -> torch.Tensor:
    """Return the predictor's scores, computed for a bounded number of tokens at a time.

    Args:
        predictor: maps hidden states [tokens, hidden size] to scores.
        hidden: [..., hidden size].
        native: whether each layer and KV head has a score of its own.

    Returns:
        float32 [...], or with `native` [..., layers, KV heads].
    """
    how = {"native": True} if native else {}
    # the predictor's first layer is twice as wide as a hidden state, and float32 at most
    at_once = max(1, piece_bytes(hidden.device) // (8 * hidden.shape[-1]))
    parts = [predictor(part, **how) for part in hidden.flatten(0, -2).split(at_once)]
    scores = torch.cat(parts).float()
    return scores.view(*hidden.shape[:-1], *scores.shape[1:])


@dataclass
class DynTS(Method):
    """Predicted importance; question and answer are protected.

    Hidden states of generated tokens are buffered and scored in one batch when a compaction is due.

    Args:
        granularity: "shared", the paper's: one set of tokens for all layers and heads. "native": each layer and KV head
            keeps the tokens that it will need itself, by a predictor with a score for each. Scores then take 4 bytes
            for each token, layer and KV head.
        protect_question: keep the question too.
    """

    name: ClassVar[str] = "dynts"
    granularity: Granularity = "shared"
    protect_question: bool = True
    protect_answer: ClassVar[bool] = True
    needs_predictor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_granularity(self.granularity)

    def check_scores(self, predictor: object) -> None:
        """Refuse a predictor whose scores do not serve this method.

        Raises:
            DyntsError: it does not tell layers and heads apart where each keeps tokens of its own.
        """
        if self.granularity == "native" and not getattr(getattr(predictor, "config", None), "native", False):
            raise DyntsError(
                "this predictor has one score for all layers and heads: train one with `dynts label --labels "
                "answer-native` and `dynts train --label answer-native`, or use granularity 'shared'"
            )

    def begin(self, surroundings: Surroundings) -> None:
        """Take the predictor.

        Raises:
            DyntsError: there is none, or its scores do not serve this method.
        """
        predictor = surroundings.predictor
        if predictor is None:
            name = type(self).__name__
            raise DyntsError(
                f"method {name} needs an importance predictor: pass "
                "predictor=ImportancePredictor.from_pretrained(...), train one with `dynts label` and `dynts train`, "
                "or choose a method without one, such as 'window'"
            )
        self.check_scores(predictor)
        self.predictor: Callable[..., torch.Tensor] = predictor
        self.scores = Columns()
        self.unscored = Columns()

    def observe_hidden(self, hidden: torch.Tensor, generated: bool) -> None:
        """Buffer hidden states of generated tokens; tokens of a question need no score. Arguments as in `Method`."""
        if generated:
            self.unscored = self.unscored.appended(hidden)
        else:
            self._score_buffer()
            own = (len(self.layers), self.kv_heads) if self.granularity == "native" else ()
            self.scores = self.scores.appended(hidden.new_zeros(*hidden.shape[:2], *own, dtype=torch.float32))

    def take_rows(self, rows: Sequence[tuple[Method, int] | None], columns: int) -> None:
        """Take over scores. Arguments as in `Method`."""

        def scores(method: Method) -> torch.Tensor:
            assert isinstance(method, DynTS)
            method._score_buffer()
            return method.scores.values

        self.scores = Columns().appended(rows_of(rows, scores, columns))
        self.unscored = Columns()

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the predictor's scores."""
        self._score_buffer()
        # layers, and so hidden states, may lie on another device than the bookkeeping
        scores = self.scores.values.to(slots.columns.device)
        if self.granularity == "native":
            return slots.lookup_native(scores.permute(2, 0, 3, 1))
        return slots.lookup(scores)

    def _score_buffer(self) -> None:
        if self.unscored.count:
            self._score(self.unscored.values)
            self.unscored = self.unscored.first(0)

    def _score(self, hidden: torch.Tensor) -> None:
        if self.granularity == "native":
            scores = predicted_scores(self.predictor, hidden, native=True)[..., self.own_heads]
        else:
            scores = predicted_scores(self.predictor, hidden)
        self.scores = self.scores.appended(scores)


@dataclass
class DynTSAll(DynTS):
    """DynTS that scores every token and keeps none by rule but the local window.

    Where the budget is small, the question and a growing answer leave little room for the thinking, though not all of
    their tokens are needed to the end.

    Args:
        granularity: see `DynTS`.
        protect_question: keep the question all the same.
    """

    name: ClassVar[str] = "dynts-all"
    protect_question: bool = False
    protect_answer: ClassVar[bool] = False
    scores_all_tokens: ClassVar[bool] = True

    def check_scores(self, predictor: object) -> None:
        """Refuse a predictor whose scores do not serve this method.

        Raises:
            DyntsError: it does not tell layers and heads apart, or has seen nothing but thinking tokens.
        """
        super().check_scores(predictor)
        if not getattr(getattr(predictor, "config", None), "all_tokens", False):
            raise DyntsError(
                "method dynts-all scores question and answer tokens, this predictor was trained on thinking tokens "
                "only: label with `dynts label --all-tokens` and train another, or use method 'dynts'"
            )

    def observe_hidden(self, hidden: torch.Tensor, generated: bool) -> None:
        """Buffer the hidden states of generated tokens; a question is scored at once. Arguments as in `Method`."""
        if generated:
            super().observe_hidden(hidden, generated)
        else:
            self._score_buffer()
            self._score(hidden)


@dataclass
class DynTSBottom(DynTS):
    """DynTS with the order of the scores reversed."""

    name: ClassVar[str] = "dynts-bottom"

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the predictor's scores, negated."""
        return -super().score(slots)


def random_scores(seed: int, positions: int, *sets: int) -> torch.Tensor:
    """Return random scores of logical positions, the same on every machine, device and batch, however many there are.

    Args:
        seed: chooses the scores.
        positions: how many.
        sets: how many scores a position has, such as layers and KV heads; none for one.

    Returns:
        float32 [positions, *sets].
    """
    return torch.rand(positions, *sets, generator=torch.Generator().manual_seed(seed))


@dataclass
class DynTSRandom(Method):
    """A random score per logical position, drawn once, so that it lasts like a predicted one; protection as in DynTS.

    Args:
        seed: chooses the scores. All rows of a batch share them.
    """

    name: ClassVar[str] = "dynts-random"
    seed: int = 0
    protect_question: bool = True
    protect_answer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("seed", self.seed)

    def score(self, slots: Slots) -> torch.Tensor:
        """Return the random scores."""
        table = random_scores(self.seed, slots.history.positions().shape[1]).to(slots.columns.device)
        return table[slots.positions.clamp(min=0)]
