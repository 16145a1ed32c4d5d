"""SepLLM: keep separators, whose keys and values sum up the segment before them (arXiv 2412.12094)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from dynts.cache.method import Method, Surroundings
from dynts.cache.slots import Slots
from dynts.errors import DyntsError, check_count

SEPARATORS = (".", ",", "?", "!", ";", ":")
"""Newlines count too."""


def separator_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return ids of the tokens whose text is one of `SEPARATORS`, white space around it aside, and of the BOS token."""
    ids = {tokenizer.bos_token_id} if tokenizer.bos_token_id is not None else set()
    for token in tokenizer.get_vocab().values():
        text = str(tokenizer.decode([token]))
        if text.strip() in SEPARATORS or ("\n" in text and not text.strip()):
            ids.add(token)
    return tuple(sorted(ids))


@dataclass
class SepLLM(Method):
    """Initial tokens, then separators, the latest first; places left over go to the latest other tokens.

    Args:
        separators: token ids; None takes them from the tokenizer.
        n_initial: how many first tokens stay, as in the authors' code.
        protect_question: keep the question too.
    """

    name: ClassVar[str] = "sepllm"
    ranks_places: ClassVar[bool] = True
    separators: tuple[int, ...] | None = None
    n_initial: int = 4
    protect_question: bool = False

    def __post_init__(self) -> None:
        check_count("n_initial", self.n_initial)
        for token in self.separators or ():
            check_count("separators: a token id", token)

    def begin(self, surroundings: Surroundings) -> None:
        """Find the separators.

        Raises:
            DyntsError: neither separators nor a tokenizer are known.
        """
        if self.separators is None:
            if surroundings.tokenizer is None:
                raise DyntsError(
                    "method SepLLM needs to know the separators: pass tokenizer= to compress, "
                    "or method=SepLLM(separators=(token ids))"
                )
            self.separators = separator_ids(surroundings.tokenizer)

    def score(self, slots: Slots) -> torch.Tensor:
        """Return three tiers, the latest first in each: initial tokens, separators, others."""
        positions = slots.positions
        separators = torch.tensor(self.separators, device=positions.device, dtype=positions.dtype)
        tier = torch.isin(slots.tokens, separators).float() + 2.0 * (positions < self.n_initial).float()
        total = slots.history.positions().shape[1]
        return tier * total + positions
