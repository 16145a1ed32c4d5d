"""What an evaluation found: the samples of one method on one benchmark."""

from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynts.cache.lengths import attended_tokens
from dynts.chat.thinking import closes_thinking
from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.grading.grader import MATH_VERIFY, Grader, GraderName
from dynts.methods import METHODS, Method
from dynts.store.manifest import MANIFEST_FILE, read_manifest
from dynts.traces.folder import TraceFolder
from dynts.traces.record import TraceRow
from dynts.traces.verdicts import given_answer, math_verify_says

MADE_BY = "dynts eval"
_KINDS = {kind.__name__: kind for kind in METHODS.values()}
"""Manifests name a method by its class."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled answer to one problem.

    Attributes:
        problem_id: of the problem.
        sample: which of its samples, from 0.
        correct: whether the last boxed answer after the thinking is right.
        answer: the last boxed answer after the thinking, as the model wrote it; None if there is none.
        finished: whether the model ended its turn before the limit of new tokens.
        closed: whether it closed its thinking; None if it was not asked to think.
        prompt_tokens: of question, instruction and chat template.
        generated_tokens: what it wrote, the token that ends its turn included.
        batch: tells runs of an engine apart.
        run_seconds: from the start of that run to its end.
        seconds: from when it got a place among those under way to its end, scoring and eviction included; in folders of
            earlier versions from the start of its batch.
        compactions: of this sequence.
        peak_tokens: most cached tokens.
        mean_tokens: cached tokens, mean over the decode steps.
        peak_bytes: allocated for the keys and values of each row by its end.
        cache_lengths: (step, cached tokens before, cached tokens after) of each compaction; the corners of the
            sawtooth.
        graders_differ: whether dynts and Math-Verify alone judge the answer differently.
    """

    problem_id: str
    sample: int
    correct: bool
    answer: str | None
    finished: bool
    closed: bool | None
    prompt_tokens: int
    generated_tokens: int
    batch: str
    run_seconds: float
    seconds: float
    compactions: int
    peak_tokens: int
    mean_tokens: float
    peak_bytes: int
    cache_lengths: tuple[tuple[int, int, int], ...]
    graders_differ: bool = False

    def attended(self) -> npt.NDArray[np.int64]:
        """Return the tokens that each decode step attends to, int [generated tokens - 1], see `dynts.cache.lengths`."""
        return attended_tokens(self.prompt_tokens, self.generated_tokens, self.cache_lengths)


@dataclass(frozen=True, slots=True)
class ArmResults:
    """The samples of one method, with one budget, on one benchmark.

    Attributes:
        benchmark: its name.
        method: name of the method with its traits, for tables, such as "dynts, future label"; see
            `dynts.decode.arm.Arm`.
        kind: the method's class; None if this version has no such method.
        traits: how many options tell it from the plain method.
        config: the budget; None for the full cache.
        samples: as they are in the folder.
        manifest: of the folder.
        folder: where they are.
        grader: whose verdict `correct` is.
    """

    benchmark: str
    method: str
    kind: type[Method] | None
    traits: int
    config: CompressionConfig | None
    samples: list[Sample]
    manifest: dict[str, Any]
    folder: Path
    grader: GraderName = "dynts"

    @property
    def uses_predictor(self) -> bool:
        """Whether an importance predictor scores every generated token."""
        return self.kind is not None and self.kind.needs_predictor

    @property
    def plain_first(self) -> tuple[int, str]:
        """Sorts the arms of a method: those with fewer traits first."""
        return self.traits, self.method


def read_results(folder: str | Path, grader: GraderName = "dynts") -> list[ArmResults]:
    """Read all arms below a folder: of a whole evaluation, of one benchmark, or one arm.

    Arms that differ in nothing but the predictor's files have its name in their `method`.

    Args:
        folder: written by `dynts eval`.
        grader: whose verdicts count. Folders hold both; what one of an earlier version lacks is graded now.

    Raises:
        DyntsError: there are none, or one is damaged.
    """
    folder = Path(folder)
    manifests = sorted(folder.rglob(MANIFEST_FILE))
    arms = [read_arm(path.parent, grader) for path in manifests if _kind(path.parent) == "eval"]
    if not arms:
        raise DyntsError(f"{folder} holds no results: give a folder written by `{MADE_BY}`")
    same = Counter(_row(arm) for arm in arms)
    return [
        replace(arm, method=f"{arm.method} ({arm.manifest['settings']['predictor']})") if same[_row(arm)] > 1 else arm
        for arm in arms
    ]


def read_arm(folder: str | Path, grader: GraderName = "dynts") -> ArmResults:
    """Read one arm, as far as it has been evaluated; see `read_results`.

    Args:
        folder: of the arm.
        grader: whose verdicts count.

    Raises:
        DyntsError: it is no folder written by `dynts eval`, or damaged.
    """
    folder = Path(folder)
    if _kind(folder) != "eval":
        raise DyntsError(f"{folder} is no arm of an evaluation: give a folder written by `{MADE_BY}`")
    traces = TraceFolder.open(folder)
    settings = traces.manifest["settings"]
    with Grader() as grading:
        samples = [_sample(row, settings["thinking"], folder, grading, grader) for row in traces.rows()]
    kind, options = _KINDS.get(settings["method"]["name"]), settings["method"]
    own_rule = kind is None or kind().protect_question
    return ArmResults(
        benchmark=settings["benchmark"],
        method=settings["label"],
        kind=kind,
        traits=(settings.get("predictor") is not None)
        + (options.get("granularity") == "native")
        + (options.get("protect_question", own_rule) != own_rule),
        config=None if settings["config"] is None else CompressionConfig(**settings["config"]),
        samples=samples,
        manifest=traces.manifest,
        folder=folder,
        grader=grader,
    )


def _sample(row: TraceRow, thinking: bool, folder: Path, grading: Grader, grader: GraderName) -> Sample:
    found = [field.name for field in fields(Sample) if field.name not in ("graders_differ", "closed")]
    values: dict[str, Any] = {name: getattr(row, name) for name in found}
    other = math_verify_says(row, grading)
    values |= {"correct": other if grader == MATH_VERIFY else row.correct, "graders_differ": row.correct != other}
    values["closed"] = closes_thinking(row.response) if thinking else None
    values["answer"] = given_answer(row.response, thinking)
    if row.run_seconds is None:  # of an earlier version
        values["run_seconds"] = row.seconds
    for name, value in values.items():
        if value is None and name not in ("answer", "closed"):
            raise DyntsError(f"{folder}: trace {row.id} has no {name}: evaluate with an engine that measures it")
    return Sample(**values)


def _kind(folder: Path) -> str:
    return str(read_manifest(folder, MADE_BY)["settings"].get("kind"))


def _row(arm: ArmResults) -> tuple[str, str, CompressionConfig | None]:
    """What tells an arm from others in a table."""
    return arm.benchmark, arm.method, arm.config
