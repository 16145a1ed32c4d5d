"""A stream of requests that come at random times, and what became of each."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from dynts.errors import DyntsError, check_count

_LONGEST_REASON = 100
"""Characters of why a request failed; servers may quote the whole request."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens: all the same, or log-normal.

    Args:
        median: half of them lie below.
        sigma: standard deviation of their logarithm; 0 makes them all the median.
        most: where they are cut; None does not cut.

    Raises:
        DyntsError: a value is outside its range.
    """

    median: int
    sigma: float = 0.0
    most: int | None = None

    def __post_init__(self) -> None:
        check_count("median", self.median, least=1)
        if not 0 <= self.sigma < math.inf:
            raise DyntsError(f"the sigma of lengths must be 0 or more, got {self.sigma}")
        if self.most is not None and self.most < self.median:
            raise DyntsError(f"lengths are cut at {self.most}, below their median of {self.median}: raise the cut")

    def draw(self, source: random.Random) -> int:
        """Draw a length from a source of random numbers."""
        length = max(1, round(self.median * math.exp(source.gauss(0.0, self.sigma))))
        return length if self.most is None else min(length, self.most)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request.

    Attributes:
        at: when it comes, in seconds from the beginning of the stream.
        prompt: tokens of its prompt.
        generated: tokens that it asks for.
        seed: of its prompt, and of what is drawn for it.
    """

    at: float
    prompt: int
    generated: int
    seed: int

    def prompt_ids(self, ids: Sequence[int]) -> list[int]:
        """Draw its prompt from token ids."""
        return random.Random(self.seed).choices(ids, k=self.prompt)


@dataclass(eq=False, slots=True)
class Reception:
    """What became of a request. Times are seconds from the beginning of the stream.

    Attributes:
        asked: the request.
        first: when its first token came; None before.
        last: when its latest token came.
        tokens: how many it has got.
        failure: why it got no more than that, in few words; None if it did not fail.
    """

    asked: Arrival
    first: float | None = None
    last: float = 0.0
    tokens: int = 0
    failure: str | None = None

    def take(self, now: float) -> None:
        """Count a token.

        Args:
            now: when it came.
        """
        self.first = now if self.first is None else self.first
        self.last, self.tokens = now, self.tokens + 1

    def fail(self, reason: str) -> None:
        """Note why there will be no more, in a line that a table has room for."""
        self.failure = " ".join(reason.split())[:_LONGEST_REASON]

    @property
    def first_seconds(self) -> float | None:
        """From its coming to its first token, so that the time in a queue counts."""
        return None if self.first is None else self.first - self.asked.at

    @property
    def token_seconds(self) -> float | None:
        """Of each token after the first, on average; None where there is none."""
        return None if self.first is None or self.tokens < 2 else (self.last - self.first) / (self.tokens - 1)


def poisson_stream(rate: float, requests: int, prompt: Lengths, generated: Lengths, seed: int = 0) -> list[Arrival]:
    """Draw a stream whose requests come independently of each other.

    Args:
        rate: requests a second, on average; infinity lets all come at once.
        requests: how many.
        prompt: tokens of the prompts.
        generated: tokens that they ask for.
        seed: the same one draws the same stream.

    Raises:
        DyntsError: the rate is not above 0.
    """
    if not rate > 0:
        raise DyntsError(f"rate must be above 0, got {rate}")
    check_count("requests", requests, least=1)

    source, at, stream = random.Random(seed), 0.0, []
    for number in range(requests):
        at += 0.0 if math.isinf(rate) else source.expovariate(rate)
        stream.append(Arrival(at, prompt.draw(source), generated.draw(source), seed + number))
    return stream
