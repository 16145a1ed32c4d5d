"""Sequences to generate, as whoever wants them sees them, and as rows under way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from transformers import LogitsProcessorList, PreTrainedModel

from dynts.config import Sampling
from dynts.decode.checkpoint import row_processors
from dynts.decode.sampling import draws_of


@dataclass(frozen=True, slots=True)
class RowToken:
    """A row's next token.

    Attributes:
        token: its id.
        failed: whether the model's logits were not finite, and the token means nothing.
        cached: tokens that the row has in the cache, this one not among them.
        fed: tokens that it was fed so far.
    """

    token: int
    failed: bool
    cached: int
    fed: int


@dataclass(eq=False, slots=True)
class RowTask:
    """A sequence to generate.

    Args:
        prompt: token ids.
        sampling: how to draw tokens; the row is given up after `max_new_tokens` of them at the latest.
        tell: takes each token as it comes, and says whether the row has ended with it. What it raises ends the batch.
        fail: told of the error if a forward pass has failed, and the row with it.

    Attributes:
        cancelled: nobody waits for the sequence any more: its row is given up before the next step. Any thread may set
            it.
    """

    prompt: Sequence[int]
    sampling: Sampling
    tell: Callable[[RowToken], bool]
    fail: Callable[[Exception], object]
    cancelled: bool = field(default=False, init=False)


@dataclass(eq=False, slots=True)
class LiveRow:
    """A sequence under way.

    Attributes:
        task: what it is to be.
        draws: a random number for each token that it may get.
        processors: what the checkpoint's generation config does to its logits.
        token: its latest.
        drawn: how many tokens it has got.
        ended: whether it has got all.
    """

    task: RowTask
    draws: list[float]
    processors: LogitsProcessorList
    token: int = 0
    drawn: int = 0
    ended: bool = False

    @classmethod
    def of(cls, task: RowTask, model: PreTrainedModel) -> Self:
        """Return a task's row, before its first token.

        Args:
            task: it.
            model: whose generation config counts.
        """
        processors = row_processors(model, task.prompt, task.sampling.max_new_tokens)
        return cls(task, draws_of(task.sampling), processors)

    @property
    def gone(self) -> bool:
        """Whether its place is free."""
        return self.ended or self.task.cancelled

    def take(self, token: RowToken) -> None:
        """Take the next token, and tell of it."""
        self.token, self.drawn = token.token, self.drawn + 1
        self.ended = self.task.tell(token) or token.failed or self.drawn == len(self.draws)

    def fail(self, error: Exception) -> None:
        """End by an error of a forward pass."""
        self.ended = True
        self.task.fail(error)
