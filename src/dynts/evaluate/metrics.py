"""What an arm's samples amount to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from dynts.errors import DyntsError
from dynts.evaluate.intervals import Estimate, mean_share
from dynts.evaluate.results import ArmResults, Sample
from dynts.evaluate.voting import Same, answer_groups, maj_at
from dynts.models.costs import flops_by_length
from dynts.models.shape import ModelShape


@dataclass(frozen=True, slots=True)
class ArmMetrics:
    """Figures of an arm.

    Attributes:
        questions: with at least one sample.
        samples: of all questions.
        pass_at_1: share of right samples, mean over the questions.
        pass_at: probability that one of k samples is right, by k, mean over the questions.
        maj_at: probability that the answer of most of k samples is right, by k, mean over the questions.
        mean_length: generated tokens of a sample.
        closed: share of samples that closed their thinking; None if they were not asked to think.
        truncated: share of samples that reached the limit of new tokens.
        compactions: of a sample, mean.
        peak_tokens: most cached tokens of a sequence.
        mean_tokens: cached tokens of a sequence, mean over the steps, then over the samples.
        peak_bytes: most bytes of keys and values of a sequence.
        mean_peak_bytes: the same, mean over the samples.
        latency: seconds of a sample, mean; see `Sample`.
        tokens_per_second: generated tokens over the seconds of the engine's runs.
        flops: of the decode steps of a sample, mean; None where the model's shape is not known.
        flops_per_step: mean over all decode steps.
    """

    questions: int
    samples: int
    pass_at_1: Estimate
    pass_at: dict[int, float]
    maj_at: dict[int, float]
    mean_length: float
    closed: float | None
    truncated: float
    compactions: float
    peak_tokens: int
    mean_tokens: float
    peak_bytes: int
    mean_peak_bytes: float
    latency: float
    tokens_per_second: float
    flops: float | None
    flops_per_step: float | None


def summarize(arm: ArmResults, same: Same, shape: ModelShape | None) -> ArmMetrics:
    """Sum up an arm.

    Args:
        arm: with at least one sample.
        same: whether two answers say the same.
        shape: of the model, for the FLOPs; None leaves them out.

    Raises:
        DyntsError: there are no samples.
    """
    if not arm.samples:
        raise DyntsError(f"{arm.folder} holds no samples of {arm.method} yet: evaluate first")
    questions = list(by_question(arm.samples).values())
    grouped = [(samples, answer_groups([sample.answer for sample in samples], same)) for samples in questions]
    ks = _ks(min(map(len, questions)))
    asked = [sample.closed for sample in arm.samples if sample.closed is not None]
    flops = None if shape is None else _flops(arm, shape)
    steps = sum(sample.generated_tokens - 1 for sample in arm.samples)
    return ArmMetrics(
        questions=len(questions),
        samples=len(arm.samples),
        pass_at_1=mean_share(np.array([share_correct(samples) for samples in questions])),
        pass_at={k: fmean(pass_at(len(each), sum(s.correct for s in each), k) for each in questions) for k in ks},
        maj_at={k: fmean(maj_at(samples, groups, k) for samples, groups in grouped) for k in ks},
        mean_length=fmean(sample.generated_tokens for sample in arm.samples),
        closed=fmean(asked) if asked else None,
        truncated=fmean(not sample.finished for sample in arm.samples),
        compactions=fmean(sample.compactions for sample in arm.samples),
        peak_tokens=max(sample.peak_tokens for sample in arm.samples),
        mean_tokens=fmean(sample.mean_tokens for sample in arm.samples),
        peak_bytes=max(sample.peak_bytes for sample in arm.samples),
        mean_peak_bytes=fmean(sample.peak_bytes for sample in arm.samples),
        latency=fmean(sample.seconds for sample in arm.samples),
        tokens_per_second=tokens_per_second(arm.samples),
        flops=None if flops is None else flops / len(arm.samples),
        flops_per_step=None if flops is None or steps == 0 else flops / steps,
    )


def by_question(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the samples of each question in their order, questions sorted by id."""
    found: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.problem_id, sample.sample)):
        found.setdefault(sample.problem_id, []).append(sample)
    return found


def share_correct(samples: Sequence[Sample]) -> float:
    """Return the share of right samples."""
    return sum(sample.correct for sample in samples) / len(samples)


def pass_at(samples: int, correct: int, k: int) -> float:
    """Estimate without bias the probability that one of k samples is right (Chen et al. 2021, arXiv 2107.03374).

    Args:
        samples: how many there are.
        correct: how many of them are right.
        k: at most `samples`.
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Generated tokens over the seconds of the runs, each as long as to its last sample's end. At least one sample."""
    lasted: dict[str, float] = {}
    for sample in samples:
        lasted[sample.batch] = max(sample.run_seconds, lasted.get(sample.batch, 0.0))
    return sum(sample.generated_tokens for sample in samples) / sum(lasted.values())


def _ks(samples: int) -> list[int]:
    """Powers of two up to the samples of every question, and all of them."""
    return sorted({samples, *(2**power for power in range(samples.bit_length()))})


def _flops(arm: ArmResults, shape: ModelShape) -> int:
    attended = [sample.attended() for sample in arm.samples]
    longest = max((int(lengths.max()) for lengths in attended if len(lengths)), default=0)
    table = flops_by_length(shape, longest, arm.uses_predictor)
    return sum(int(table[lengths].sum()) for lengths in attended)
