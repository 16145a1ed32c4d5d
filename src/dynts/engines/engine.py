"""What every engine does: take requests, give back completions as they finish."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dynts.cache.lengths import CacheLengths
from dynts.chat.markers import ThinkFormat
from dynts.decode.arm import Arm
from dynts.traces.problems import Problem


def trace_id(problem_id: str, sample: int) -> str:
    """Return the id of a sample's trace, which is unique where the problems' ids are.

    Args:
        problem_id: of the problem.
        sample: which of its samples, from 0.
    """
    return f"{problem_id}#{sample}"


def sampling_seed(seed: int, trace: str) -> int:
    """Return the seed of one sample.

    Args:
        seed: of the run.
        trace: id of the trace that it becomes.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {trace}".encode()).digest()[:4], "big")


FULL_CACHE: Arm[str] = Arm()


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of one problem.

    Args:
        problem: what to solve.
        sample: which of its samples, from 0.
        seed: of the run.
        arm: by which to decode; it does not change what is drawn.
    """

    problem: Problem
    sample: int
    seed: int
    arm: Arm[str] = FULL_CACHE

    @property
    def id(self) -> str:
        """Of the trace that it becomes."""
        return trace_id(self.problem.id, self.sample)

    @property
    def sampling_seed(self) -> int:
        """Depends on run, problem and sample alone, so that it is the same after an interruption."""
        return sampling_seed(self.seed, self.id)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote on a request.

    Args:
        request: the request.
        text: with the think markers where it wrote them, as `format` says, without other special tokens.
        finished: whether it ended its turn before the limit of new tokens.
        prompt_ids: what it read.
        generated_ids: what it wrote, the token that ends its turn included.
        seconds: from when it got a place among those under way to its end, scoring and eviction included.
        batch: tells the run of the engine that it was in from all others. A run never stands still between its first
            request and its last.
        run_seconds: from the start of that run to its end.
        lengths: its cached tokens at each step.
        peak_bytes: of keys and values, allocated for each row by its end.
        format: how the model writes its think markers.
        thinks: see `dynts.chat.prompts.ChatPrompt`.
    """

    request: Request
    text: str
    finished: bool
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]
    seconds: float
    batch: str | None = None
    run_seconds: float | None = None
    lengths: CacheLengths | None = None
    peak_bytes: int | None = None
    format: ThinkFormat = field(default_factory=ThinkFormat)
    thinks: bool | None = None

    @property
    def prompt_tokens(self) -> int:
        """How many it read."""
        return len(self.prompt_ids)

    @property
    def generated_tokens(self) -> int:
        """How many it wrote."""
        return len(self.generated_ids)

    def measurements(self) -> dict[str, Any]:
        """Return what the engine read, wrote and measured, as fields of a `TraceRow`."""
        found: dict[str, Any] = {
            "prompt_ids": tuple(self.prompt_ids),
            "generated_ids": tuple(self.generated_ids),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "seconds": round(self.seconds, 3),
            "batch": self.batch,
            "run_seconds": None if self.run_seconds is None else round(self.run_seconds, 3),
            "peak_bytes": self.peak_bytes,
        }
        if self.lengths is not None:
            found |= {
                "compactions": len(self.lengths.compactions),
                "peak_tokens": self.lengths.peak,
                "mean_tokens": self.lengths.mean,
                "cache_lengths": self.lengths.compactions,
            }
        return found


class Engine(Protocol):
    """Generates text. A model is loaded once, in the engine's constructor."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Work through requests, taking them as there is room.

        Yields:
            Completions as they finish, so that nothing waits for the slowest of a batch to be stored.
        """
        ...


class EngineSpec(Protocol):
    """How to start an engine: what is sent to another process, where the model is then loaded."""

    @property
    def batch(self) -> int:
        """How many traces are under way at a time."""
        ...

    def start(self) -> Engine:
        """Load the model."""
        ...
