"""A method of one's own in one file: keep what the model concludes, from "so" to the full stop.

    python examples/own_method.py

compares it with `random` and `dynts` on 20 problems of the embedded model. It needs no training, but somebody who knows
how the model writes. For a model of your own: `load_model("deepseek-ai/...")`, `Conclusions((" So", " Therefore"))`,
your problems, a larger budget. The notebook `own_method.ipynb` beside this file explains each step.
"""

from dataclasses import dataclass
from functools import partial

import torch

import dynts
from dynts.cache.slots import Slots
from dynts.methods import Method, Surroundings
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import solve
from dynts.tiny.task import make_problem


@dataclass
class Conclusions(Method):
    """Sentences that a word opens, up to the full stop; the question is kept too."""

    openings: tuple[str, ...] = ("so",)
    stops: tuple[str, ...] = (".",)
    protect_question: bool = True

    def begin(self, surroundings: Surroundings) -> None:
        """Look up the token ids."""
        encode = partial(surroundings.tokenizer.encode, add_special_tokens=False)
        self.opening_ids = torch.tensor([encode(word)[-1] for word in self.openings])
        self.stop_ids = torch.tensor([encode(mark)[-1] for mark in self.stops])

    def score(self, slots: Slots) -> torch.Tensor:
        """Return 1 for a token within such a sentence, 0 for others; among equals the later token stays."""
        tokens = slots.history.tokens()  # of the whole sequence, evicted ones too: [batch, columns]
        column = torch.arange(tokens.shape[1], device=tokens.device)
        opened = torch.where(torch.isin(tokens, self.opening_ids.to(tokens.device)), column, -1).cummax(-1).values
        closed = torch.where(torch.isin(tokens, self.stop_ids.to(tokens.device)), column, -1).cummax(-1).values
        return slots.lookup((opened > closed).float())  # of the tokens that are cached: [1, batch, 1, slots]


model, tokenizer = load_tiny_model()
problems = [make_problem(number) for number in range(20)]
budget = dynts.CompressionConfig(budget=246, local_window=75, retention_ratio=0.67)
for method in (Conclusions(), "random", "dynts"):
    with dynts.compress(model, method, budget, load_tiny_predictor("future")) as session:
        solutions = solve(model, tokenizer, problems)
    right = sum(solution.correct for solution in solutions)
    print(f"{method}: {right} of {len(problems)} right, at most {session.stats[-1].peak_tokens} tokens cached")
