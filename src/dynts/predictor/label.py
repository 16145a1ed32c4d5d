"""The importances that predictors are trained on: every label that `dynts label` can make, one row each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dynts.errors import DyntsError

Queries = Literal["answer", "later"]
FUTURE_WINDOW = 32
"""Tokens; a label whose queries are all later tokens counts those that are more than this many positions later."""


@dataclass(frozen=True, slots=True)
class Label:
    """How much attention a token gets, from whom.

    Args:
        name: as users give it.
        queries: "answer": its mean attention from the tokens of the answer. "later": the most attention from any later
            token beyond a window.
        granularity: "shared": averaged over layers and heads. "native": for each layer and KV head.
        meaning: in words.
    """

    name: str
    queries: Queries
    granularity: Literal["shared", "native"]
    meaning: str

    @property
    def looks_ahead(self) -> bool:
        """Whether it has a window."""
        return self.queries == "later"


LABELS = {
    label.name: label
    for label in (
        Label("answer", "answer", "shared", "the mean attention that the answer pays to it"),
        Label(
            "future", "later", "shared", "the most attention that any later token pays to it, beyond the local window"
        ),
        Label(
            "answer-native",
            "answer",
            "native",
            "the mean attention that the answer pays to it, for each layer and KV head",
        ),
        Label(
            "future-native",
            "later",
            "native",
            "the most attention that any later token pays to it, beyond the local window, for each layer and KV head",
        ),
    )
}
SHARED_LABELS = tuple(label.name for label in LABELS.values() if label.granularity == "shared")
"""Those of all layers and heads together: what is made where nothing is asked for."""


def find_labels(names: Sequence[str], known: Iterable[str] = LABELS) -> list[Label]:
    """Return the labels of these names.

    Args:
        names: at least one.
        known: the names to choose from.

    Raises:
        DyntsError: there is none, or one is unknown; names the choice.
    """
    choice = list(known)
    unknown = [name for name in names if name not in choice]
    if unknown or not names:
        raise DyntsError(f"unknown label {unknown[0] if unknown else ''!r}: choose from {', '.join(choice)}")
    return [LABELS[name] for name in names]


def shared_label(name: str) -> str:
    """Return the label of all layers and heads together that has the same queries; an unknown name as it is."""
    if name not in LABELS:
        return name
    queries = LABELS[name].queries
    return next(label.name for label in LABELS.values() if (label.queries, label.granularity) == (queries, "shared"))


def looks_ahead(names: Iterable[str]) -> bool:
    """Return whether one of these labels has a window."""
    return any(LABELS[name].looks_ahead for name in names if name in LABELS)


def check_window(future_window: int) -> None:
    """Refuse a window without tokens.

    Raises:
        DyntsError: names the limit.
    """
    if future_window < 1:
        raise DyntsError(f"future_window must be at least 1 token, got {future_window}")
