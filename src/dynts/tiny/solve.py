"""Let a model solve problems of the task, in batches, greedily; and the budget schedule it is used with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from dynts.chat.markers import END
from dynts.chat.prompts import chat_prompt
from dynts.chat.written import decode_text
from dynts.config import CompressionConfig
from dynts.grading.compare import is_response_correct
from dynts.tiny.task import ChainProblem

QUESTION_TOKENS = 59
"""Mean prompt of the embedded model's task."""
MEAN_LENGTH = 614
"""Mean tokens of a whole solved problem, question and answer included, with the full cache."""


def schedule(budget: int) -> CompressionConfig:
    """Return the demo's schedule.

    Of the room beside a question of mean length 40% are the local window, 40% selected tokens.

    Args:
        budget: in tokens.

    Raises:
        DyntsError: the budget is too small.
    """
    return CompressionConfig(
        budget, local_window=max(1, round(0.4 * (budget - QUESTION_TOKENS))), retention_ratio=2 / 3
    )


def budget_for(share: float) -> int:
    """Return the budget, in tokens, that is this share of the mean length."""
    return round(share * MEAN_LENGTH)


MAX_NEW_TOKENS = 1000
"""More than any right solution has: the longest of 5,000 has 866."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the model wrote on a problem.

    Args:
        text: thinking, closing marker and answer.
        correct: whether the thinking was finished and the boxed answer after it is right.
        finished: whether the model ended its turn within the limit of new tokens.
        prompt_tokens: how many tokens the prompt has, padding left out.
        thinking_tokens: how many tokens it wrote before it closed its thinking.
        tokens: how many tokens it wrote.
    """

    text: str
    correct: bool
    finished: bool
    prompt_tokens: int
    thinking_tokens: int
    tokens: int


def solve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[ChainProblem],
    *,
    thinking: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch: int = 100,
    progress: Callable[[int], None] | None = None,
) -> list[Solution]:
    """Solve problems with `model.generate`; inside a `dynts.compress` context, under its budget.

    Args:
        model: the embedded model.
        tokenizer: its tokenizer.
        problems: what to solve.
        thinking: False closes the thinking in the prompt, so that the model has to answer at once.
        max_new_tokens: when to give up on a problem.
        batch: problems at a time.
        progress: called after each step with the number of problems done.
    """
    solutions: list[Solution] = []
    for start in range(0, len(problems), batch):
        chosen = problems[start : start + batch]
        prompts = [f"{chat_prompt(tokenizer, problem.question)}{'' if thinking else END}" for problem in chosen]
        inputs = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False).to(model.device)
        counter = None if progress is None else _Counter(tokenizer, start, progress)
        output = cast(Any, model).generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=counter)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        for problem, length, row in zip(chosen, lengths, rows, strict=True):
            solutions.append(_grade(tokenizer, problem, length, row, thinking))
    return solutions


def is_solved(text: str, answer: str) -> bool:
    """Return whether the thinking ends, and the boxed answer after it is right.

    Args:
        text: what the model wrote.
        answer: the gold answer.
    """
    return bool(is_response_correct(text, answer))


def mean_length(solutions: Sequence[Solution]) -> float:
    """Return the mean tokens of a whole sequence, prompt included: what budgets are set against."""
    return mean(solution.prompt_tokens + solution.tokens for solution in solutions)


class _Counter(BaseStreamer):
    """Counts the problems of a batch that have ended."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: int, progress: Callable[[int], None]) -> None:
        self.end_token = tokenizer.eos_token_id
        self.before = before
        self.progress = progress
        self.ended: torch.Tensor | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then one token of each problem."""
        ended = value == self.end_token
        if ended.dim() == 1:
            self.ended = ended if self.ended is None else self.ended | ended
            self.progress(self.before + int(self.ended.sum()))

    def end(self) -> None:
        """Do nothing: nothing is left to flush."""


def _grade(
    tokenizer: PreTrainedTokenizerBase, problem: ChainProblem, prompt: int, row: list[int], thinking: bool
) -> Solution:
    finished = tokenizer.eos_token_id in row
    row = row[: row.index(tokenizer.eos_token_id) + 1] if finished else row
    end = tokenizer.convert_tokens_to_ids(END)
    thought = row.index(end) if end in row else len(row)
    text = decode_text(tokenizer, row)
    correct = is_solved(text if thinking else f"{END} {text}", problem.answer)
    return Solution(text, correct, finished, prompt, thought if thinking else 0, len(row))
