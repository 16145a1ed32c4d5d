"""Evaluate: take the samples that the arms lack, each arm into a folder of traces of its own."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dynts.chat.options import ChatOptions
from dynts.chat.prompts import encode_question
from dynts.chat.written import ClosingWatch
from dynts.collect.collect import Generate, collect
from dynts.decode.arm import Arm
from dynts.errors import DyntsError
from dynts.evaluate.arms import PlannedArm
from dynts.store.progress import Display
from dynts.traces.folder import TraceFolder
from dynts.traces.problems import read_problems
from dynts.traces.verdicts import judge_answer


def evaluate(
    plans: Sequence[PlannedArm],
    out: Path,
    generate: Generate,
    display: Display,
    *,
    thinking: bool,
    watch: ClosingWatch,
    length: Callable[[str], int] = len,
    model: Mapping[str, Any],
) -> None:
    """Take the samples that the arms lack. The same call continues an interrupted one.

    Args:
        plans: what to evaluate, one after another.
        out: the folder of all results.
        generate: makes the completions.
        display: shows how far the work is.
        thinking: whether the answer is what follows the thinking; else it is all of the response.
        watch: told of every new sample of a model that thinks.
        length: of a question, see `Plan.requests`.
        model: arguments of `collect_settings` that tell which model answers, and how.

    Raises:
        DyntsError: other settings than those of an arm's folder, a folder in use, a full disk.
    """
    judge = functools.partial(judge_answer, thinking=thinking)
    settings = [planned.settings(thinking, **model) for planned in plans]
    # all folders are looked at before hours are spent on the first
    for planned, own in zip(plans, settings, strict=True):
        TraceFolder.check(out / planned.folder, own)
    for name, left_out in {planned.benchmark.name: planned.found.without_gold for planned in plans}.items():
        if left_out:
            display.say(f"{name}: {left_out} problems without a gold answer are left out")
    for number, (planned, own) in enumerate(zip(plans, settings, strict=True), start=1):
        display.say(f"arm {number} of {len(plans)}: {planned.folder}")
        collect(
            planned.plan,
            planned.found,
            out / planned.folder,
            own,
            generate,
            display,
            judge,
            watch if thinking else None,
            length,
        )


def needed_arms(plans: Iterable[PlannedArm]) -> tuple[Arm[str], ...]:
    """Return the arms that an engine has to decode by, each once."""
    found: list[Arm[str]] = []
    for planned in plans:
        if planned.arm not in found:
            found.append(planned.arm)
    return tuple(found)


def check_questions(plans: Iterable[PlannedArm], tokenizer: PreTrainedTokenizerBase, chat: ChatOptions) -> None:
    """Refuse a budget that is too small for one of the questions, before any is answered.

    Args:
        plans: the arms, each on its benchmark.
        tokenizer: of the model.
        chat: how the model is talked to.

    Raises:
        DyntsError: names the longest question and the smallest budget that would do.
    """
    longest: dict[str, tuple[int, str]] = {}
    for planned in plans:
        schedule, name = planned.arm.schedule, planned.benchmark.name
        if schedule is None:
            continue
        if name not in longest:
            problems = read_problems(planned.plan.source, planned.found.chosen)
            longest[name] = max(
                (len(encode_question(tokenizer, item.question, chat).ids), item.id) for item in problems
            )
        tokens, identity = longest[name]
        try:
            schedule.check_question(tokens)
        except DyntsError as error:
            raise DyntsError(f"benchmark {name}, question {identity}: {error}") from error
