"""DynTS-all: all tokens compete, those of question and answer too; beyond the paper, which keeps both."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dynts.errors import DyntsError
from dynts.methods.base import Surroundings
from dynts.methods.dynts import DynTS


@dataclass
class DynTSAll(DynTS):
    """DynTS that scores every token and keeps none by rule but the local window.

    Where the budget is small, the question and a growing answer leave little room for the thinking, though not all of their
    tokens are needed to the end.

    Args:
        granularity: see `DynTS`.
        protect_question: keep the question all the same.
    """

    protect_question: bool = False
    protect_answer: ClassVar[bool] = False
    scores_all_tokens: ClassVar[bool] = True

    def begin(self, surroundings: Surroundings) -> None:
        """Take the predictor.

        Raises:
            DyntsError: there is none, or it has seen nothing but thinking tokens.
        """
        super().begin(surroundings)
        if not getattr(getattr(surroundings.predictor, "config", None), "all_tokens", False):
            raise DyntsError(
                "method dynts-all scores question and answer tokens, this predictor was trained on thinking tokens only: label "
                "with `dynts label --all-tokens` and train another, or use method 'dynts'"
            )

    def observe_hidden(self, hidden: torch.Tensor, generated: bool) -> None:
        """Buffer the hidden states of generated tokens; a question is scored at once."""
        self.unscored.append(hidden)
        if not generated:
            self._score_buffer()
