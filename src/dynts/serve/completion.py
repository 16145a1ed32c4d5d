"""One completion under way: what is asked of a row of a batch, and what it tells whoever asked."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dynts.config import Sampling
from dynts.serve.errors import ApiError
from dynts.serve.protocol import FinishReason


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a row."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A row's end: why it ended, how many tokens it generated, and what its cache did."""

    index: int
    finish_reason: FinishReason
    generated_tokens: int
    cache: "CacheUse"


Event = Piece | Ended | ApiError


@dataclass(slots=True)
class CacheUse:
    """What the cache did for one row, told by what it holds after every step."""

    compactions: int = 0
    evicted_tokens: int = 0
    peak_tokens: int = 0
    cached_tokens: int = 0

    def observe(self, cached: int, fed: int) -> None:
        """Take note of a step.

        Args:
            cached: tokens that the row has in the cache now.
            fed: tokens that it was fed so far.
        """
        evicted = fed - cached
        newly = evicted - self.evicted_tokens
        self.peak_tokens = max(self.peak_tokens, cached + newly)  # before the compaction, if there was one
        self.compactions += newly > 0
        self.evicted_tokens, self.cached_tokens = evicted, cached


@dataclass(slots=True, eq=False)
class Row:
    """A completion that is asked for.

    Args:
        index: which of the request's completions it is.
        prompt: token ids.
        sampling: how to draw tokens, and when to stop.
        stop: strings that end it.
        tell: takes its events, from any thread.
        continues: whether its text goes on with the prompt's, or is a message of its own.
        cancelled: nobody waits for it any more.
    """

    index: int
    prompt: list[int]
    sampling: Sampling
    stop: tuple[str, ...]
    tell: Callable[[Event], None]
    continues: bool = False
    cancelled: bool = field(default=False, init=False)
