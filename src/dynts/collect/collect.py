"""Collect the traces that a folder lacks."""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynts.chat.thinking import closes_thinking, normalise
from dynts.chat.written import ClosingWatch
from dynts.collect.plan import Plan, collect_facts
from dynts.engines.engine import Completion, EngineSpec, Request, trace_id
from dynts.engines.ray import ActorPool, Cluster, Work
from dynts.grading.grader import Grader
from dynts.store.lock import Hold, hold
from dynts.store.progress import Display, Tally
from dynts.store.torchrun import this_rank
from dynts.traces.filters import judge
from dynts.traces.folder import MADE_BY, TraceFolder, TraceWriter
from dynts.traces.problems import Survey
from dynts.traces.record import TraceRow
from dynts.traces.verdicts import math_verify_says

Generate = Callable[[Iterator[Request]], Generator[Completion]]
"""Works through the requests with an engine, or several, which the first of its calls starts."""
Judge = Callable[[str, str, Grader], tuple[str | None, bool]]
"""Judges a response by the gold answer: a reason against the trace or None, and whether its answer is right."""


def collect(
    plan: Plan,
    found: Survey,
    out: str | Path,
    settings: dict[str, Any],
    generate: Generate,
    display: Display,
    judge: Judge = judge,
    watch: ClosingWatch | None = None,
    length: Callable[[str], int] = len,
) -> Tally:
    """Collect into a folder. The same call on the same folder makes the traces that it lacks.

    Args:
        plan: what is wanted.
        found: its survey.
        out: the folder.
        settings: see `dynts.collect.plan.collect_settings`.
        generate: makes the completions; called only if there is something to do.
        display: shows how far the work is.
        judge: the default asks for traces that are fit for training.
        watch: told of every new trace.
        length: of a question, see `Plan.requests`.

    Returns:
        The counts of the whole folder; under `torchrun` those of this process's share.

    Raises:
        DyntsError: other settings than the folder's, a folder in use, a full disk.
    """
    rank = this_rank()
    with hold(Path(out), rank, MADE_BY) as held:
        folder = TraceFolder.create(out, settings, collect_facts(plan, found))
        folder.mend(display.say, lambda worker: worker % rank.world == rank.rank)
        mine = {
            trace_id(problem, sample)
            for problem in found.chosen
            if rank.owns(problem)
            for sample in range(plan.samples)
        }
        tally, done = count_outcomes(folder, mine)
        held.note(force=True, **tally.figures())
        missing = (request for request in plan.requests(found, length) if request.id in mine and request.id not in done)
        if tally.done >= tally.total:
            return tally
        with Grader() as grader, closing(generate(missing)) as completions:
            rows = (grade(completion, grader, judge) for completion in completions)
            store(rows, folder.writer(rank.rank), tally, held, display, watch)
    return tally


@contextmanager
def engines(spec: EngineSpec, cluster: Cluster | None, say: Callable[[str], object]) -> Iterator[Generate]:
    """Generate in this process, or in the actors of a Ray cluster, an engine in each.

    This process alone writes folders.

    A model is loaded when there is something to generate, and stays loaded until the end of the block.

    Args:
        spec: how to start an engine.
        cluster: None for this process.
        say: told of actors that died.
    """

    def prepare() -> Work:
        engine = spec.start()
        return lambda requests: ((done.request.id, done) for done in engine.generate(requests))

    with ExitStack() as running:

        @functools.cache
        def started() -> Callable[[Iterator[Request]], Iterator[Completion]]:
            if cluster is None:
                return spec.start().generate
            pool = running.enter_context(ActorPool(cluster, prepare, say))
            return lambda requests: pool.work(requests, spec.batch)

        def generate(requests: Iterator[Request]) -> Generator[Completion]:
            yield from started()(requests)

        yield generate


def grade(completion: Completion, grader: Grader, judge: Judge) -> TraceRow:
    """Bring a completion into the form of traces, and judge it.

    Args:
        completion: what an engine returned.
        grader: compares answers.
        judge: says what is wrong with a response, and whether its answer is right.
    """
    request = completion.request
    response = normalise(completion.text, completion.format, completion.thinks)
    reason, correct = judge(response, request.problem.answer, grader)
    row = TraceRow(
        id=request.id,
        problem_id=request.problem.id,
        sample=request.sample,
        question=request.problem.question,
        response=response,
        answer=request.problem.answer,
        correct=correct,
        reason=reason,
        finished=completion.finished,
        extra=request.problem.extra,
        **completion.measurements(),
    )
    return replace(row, math_verify=math_verify_says(row, grader))


def store(
    rows: Iterable[TraceRow],
    writer: TraceWriter,
    tally: Tally,
    held: Hold,
    display: Display,
    watch: ClosingWatch | None = None,
) -> None:
    """Write graded traces as they come, count them, and show how far the work is.

    Args:
        rows: the traces.
        writer: of the folder.
        tally: counts them by outcome.
        held: the folder's lock, whose note tells others how far the work is.
        display: shows how far the work is.
        watch: is told of every trace of a model that thinks; None for one that does not.
    """
    try:
        for row in rows:
            writer.append(row)
            tally.add(row.correct, row.reason)
            tally.tokens += row.generated_tokens or 0
            if watch is not None:
                watch.note(bool(row.finished), closes_thinking(row.response))
            held.note(**tally.figures())
            display.update(tally)
    finally:
        writer.close()


def count_outcomes(folder: TraceFolder, wanted: Set[str]) -> tuple[Tally, set[str]]:
    """Count what a folder holds of the wanted traces, by outcome, and return their ids too.

    Args:
        folder: of traces.
        wanted: ids of the traces that count.
    """
    tally, done = Tally(total=len(wanted), correct=0), set()
    for outcome in folder.outcomes():
        if outcome.id in wanted:
            done.add(outcome.id)
            tally.add(outcome.correct, outcome.reason)
    tally.started_with = tally.done
    return tally, done
