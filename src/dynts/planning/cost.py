"""Memory and time of decoding under a budget, from the shape of the model and the limits of the hardware."""

import re
from dataclasses import dataclass

from dynts.cache.lengths import attended_tokens, cache_lengths
from dynts.config import MEMORY_RESERVE, CompressionConfig
from dynts.errors import DyntsError
from dynts.models.costs import PredictorCost
from dynts.models.shape import ModelShape

_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgtp]?)(i?)(.*?)\s*", re.IGNORECASE)


def parse_quantity(text: str, unit: str) -> float:
    """Read a text such as "80GB" as a number of bare units: 8e10 bytes.

    Args:
        text: a number, a prefix (k, M, G, T, P; with i such as in GiB it counts in powers of 1024) and the unit.
        unit: "B", "B/s" or "FLOPS"; upper and lower case do not matter.

    Raises:
        DyntsError: the text is no positive quantity in this unit.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[4].lower() != unit.lower() or (match[3] and not match[2]) or float(match[1]) == 0:
        raise DyntsError(f"{text!r} is no positive quantity in {unit}: write it such as 80G{unit} or 3.35T{unit}")
    number, prefix, binary, _ = match.groups()
    return float(number) * (1024 if binary else 1000) ** _PREFIXES[prefix.lower()]


@dataclass(frozen=True, slots=True)
class Hardware:
    """Limits of a device.

    Args:
        memory: bytes.
        bandwidth: bytes read a second.
        flops: floating-point operations a second in the model's dtype.
        reserve: share of the memory that holds neither weights nor cache: activations, the runtime, fragmentation.
    """

    memory: float
    bandwidth: float
    flops: float
    reserve: float = MEMORY_RESERVE


@dataclass(frozen=True, slots=True)
class Workload:
    """What is generated.

    Args:
        question: tokens of a question.
        length: tokens generated for it, thinking and answer.
        sequences: generated at a time.
    """

    question: int
    length: int
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Decoding one workload under one schedule.

    Attributes:
        schedule: None is the full cache.
        peak_tokens: most cached tokens of a sequence.
        mean_tokens: cached tokens that a step attends to, on average.
        compactions: of a sequence.
        evicted: tokens that a compaction evicts, which is also the steps from one to the next; 0 without any.
        sequence_bytes: most bytes of a sequence: its cache, and the hidden states that wait for their scores.
        sequences: how many sequences fit into the memory.
        step_seconds: mean decode step of all sequences of the workload, None for a mixture of experts.
        tokens_per_second: of as many sequences as fit, None where none fits and for a mixture of experts.
        break_even: evicted tokens from which an eviction saves more FLOPs than one score costs, see `break_even`.
    """

    schedule: CompressionConfig | None
    peak_tokens: int
    mean_tokens: float
    compactions: int
    evicted: int
    sequence_bytes: int
    sequences: int
    step_seconds: float | None
    tokens_per_second: float | None
    break_even: int | None


@dataclass(frozen=True, slots=True)
class Planner:
    """Costs of one model on one device.

    Args:
        shape: of the model.
        dtype_bytes: of a weight, a cached number and a hidden state.
        hardware: the device.
    """

    shape: ModelShape
    dtype_bytes: int
    hardware: Hardware

    @property
    def weight_bytes(self) -> int:
        """All weights of the model."""
        return self.shape.parameters * self.dtype_bytes

    @property
    def predictor(self) -> PredictorCost:
        """The model's predictor."""
        return PredictorCost.of(self.shape.hidden_size)

    def cost(self, work: Workload, schedule: CompressionConfig | None) -> Cost:
        """Return the memory and time of a workload.

        Args:
            work: what is generated.
            schedule: the budget; None never evicts.

        Raises:
            DyntsError: the budget is too small for the question.
        """
        found = cache_lengths(work.question, work.length, schedule)
        lengths = attended_tokens(work.question, work.length, found.compactions).tolist()
        peak, compactions = found.peak, len(found.compactions)
        evicted = schedule.budget - schedule.kept_tokens(work.question) if schedule and compactions else 0
        size = self.sequence_bytes(peak, evicted)
        fits = self.fitting(size, schedule is not None)
        seconds = self._step_seconds(lengths, work.sequences, compactions) if lengths else None
        full = self._step_seconds(lengths, fits, compactions) if lengths and fits else None
        return Cost(
            schedule=schedule,
            peak_tokens=peak,
            mean_tokens=sum(lengths) / max(1, len(lengths)),
            compactions=compactions,
            evicted=evicted,
            sequence_bytes=size,
            sequences=fits,
            step_seconds=seconds,
            tokens_per_second=None if full is None else fits / full,
            break_even=self.break_even(evicted) if evicted else None,
        )

    def sequence_bytes(self, tokens: int, unscored: int) -> int:
        """Return the bytes of a sequence.

        Args:
            tokens: cached.
            unscored: tokens whose hidden states wait for their scores.
        """
        hidden = unscored * self.shape.hidden_size * self.dtype_bytes
        return self.shape.kv_bytes(tokens, self.dtype_bytes) + hidden

    def fitting(self, sequence_bytes: int, predictor: bool) -> int:
        """Return how many sequences fit beside the weights and the reserve.

        Args:
            sequence_bytes: of one sequence.
            predictor: whether the weights of a predictor are there too.
        """
        weights = self.weight_bytes + (self.predictor.bytes if predictor else 0)
        room = self.hardware.memory * (1 - self.hardware.reserve) - weights
        return max(0, int(room // sequence_bytes))

    def break_even(self, steps: int) -> int:
        """Return the fewest evicted tokens that save more FLOPs than the score of one token costs.

        `K > (6 d^2 + d) / (n 4 L d)`, with the attention's real width for d in the denominator.

        Args:
            steps: n, the steps for which the eviction counts: those until the next one.
        """
        return self.predictor.flops // (steps * self.shape.attention_flops_per_key) + 1

    def _step_seconds(self, lengths: list[int], sequences: int, compactions: int) -> float | None:
        """Mean decode step: weights are read once, the cache of each sequence once; what takes longer counts.

        The predictor's FLOPs come with every token, its weights are read once a compaction. The moves of a compaction
        are left out.
        """
        shape, hardware = self.shape, self.hardware
        if shape.matrix_parameters is None:
            return None
        weights = shape.matrix_parameters * self.dtype_bytes
        scoring = self.predictor.flops if compactions else 0
        seconds = sum(
            max(
                (weights + sequences * self.sequence_bytes(length, 0)) / hardware.bandwidth,
                sequences * (shape.flops_per_token(length) + scoring) / hardware.flops,
            )
            for length in lengths
        )
        return (seconds + compactions * self.predictor.bytes / hardware.bandwidth) / len(lengths)
