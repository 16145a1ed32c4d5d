"""What the predictor says of tokens, for the KV heads that a process of an engine has."""

import torch

from dynts.methods.dynts import predicted_scores
from dynts.predictor.model import ImportancePredictor


class Scorer:
    """Scores tokens as a `Ledger` notes them.

    Args:
        predictor: of the model.
        native: whether each layer and KV head keeps tokens of its own.
        rank: of the process in its tensor parallel group.
        size: processes of the group.

    Attributes:
        sets: (layers, KV heads) that each keep tokens of their own in this process; None for one set of tokens.
    """

    def __init__(self, predictor: ImportancePredictor, native: bool, rank: int, size: int) -> None:
        self.predictor = predictor
        self.sets: tuple[int, int] | None = None
        if native:
            self._heads = own_heads(rank, size, predictor.config.kv_heads)
            self.sets = predictor.config.layers, self._heads.stop - self._heads.start

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return scores, float32 [tokens], or [tokens, layers, KV heads] with sets of their own.

        Args:
            hidden: [tokens, hidden size], last hidden states.
        """
        if self.sets is None:
            return predicted_scores(self.predictor, hidden)
        return predicted_scores(self.predictor, hidden, native=True)[..., self._heads]


def own_heads(rank: int, size: int, heads: int) -> slice:
    """Return the KV heads of a layer that a process of a tensor parallel group holds, as the engines share them out.

    Args:
        rank: of the process.
        size: processes of the group; each head has copies where there are more than heads.
        heads: KV heads of the whole layer.
    """
    first = rank * heads // size
    return slice(first, first + max(1, heads // size))
