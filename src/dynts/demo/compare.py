"""Solve the same problems with every method under one budget, and measure what each costs."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.lengths import GenerationStats
from dynts.cache.method import Granularity
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm, make_arms
from dynts.decode.compress import Predictor, compress
from dynts.methods import METHODS, DynTSBottom
from dynts.predictor.model import ImportancePredictor
from dynts.store.progress import bar
from dynts.tiny.solve import Solution, mean_length, solve
from dynts.tiny.task import ChainProblem


@dataclass(frozen=True, slots=True)
class Result:
    """What a method did on a set of problems.

    Args:
        name: of the arm.
        solutions: one a problem.
        stats: one a batch.
        seconds: wall time, scoring and eviction included.
    """

    name: str
    solutions: list[Solution]
    stats: list[GenerationStats]
    seconds: float

    @property
    def correct(self) -> int:
        """Problems answered correctly."""
        return sum(solution.correct for solution in self.solutions)

    @property
    def pass_at_1(self) -> float:
        """Share of the problems answered correctly."""
        return self.correct / len(self.solutions)

    @property
    def mean_length(self) -> float:
        """Mean of the generated tokens."""
        return sum(solution.tokens for solution in self.solutions) / len(self.solutions)

    @property
    def mean_sequence(self) -> float:
        """Mean of the tokens of a whole sequence, prompt included."""
        return mean_length(self.solutions)

    @property
    def truncated(self) -> int:
        """Problems on which the model did not end its turn."""
        return sum(not solution.finished for solution in self.solutions)

    @property
    def peak_tokens(self) -> int:
        """Most cached tokens of a sequence."""
        return max(stats.peak_tokens for stats in self.stats)

    @property
    def peak_bytes(self) -> int:
        """Most bytes of keys and values of a batch."""
        return max(stats.peak_bytes for stats in self.stats)

    @property
    def compactions(self) -> int:
        """Compactions of all batches; one may compact several sequences."""
        return sum(len(stats.compactions) for stats in self.stats)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time; what is generated for a sequence after its end does not count."""
        return sum(solution.tokens for solution in self.solutions) / self.seconds


BY_NAME_ONLY = ("random", "keydiff", "vase")
"""Methods that the demo's table leaves out unless asked for: the others show what there is to see in a minute."""


def every_arm(
    predictors: Mapping[str, ImportancePredictor], *, native: bool = False, protect_question: bool = True
) -> list[Arm[ImportancePredictor]]:
    """Return an arm of every method, those with a predictor once for each that serves them.

    Args:
        predictors: by label; `dynts-bottom` takes the first one only.
        native: those that can choose per layer and KV head do that too.
        protect_question: keep the question where a method would not by itself; else all are as published.
    """
    first = next(iter(predictors))
    configs = {label: predictor.config for label, predictor in predictors.items()}
    all_tokens = any(config.all_tokens for config in configs.values())
    names = [name for name, kind in METHODS.items() if all_tokens or not kind.scores_all_tokens]
    granularities: list[Granularity] = ["shared", "native"] if native else ["shared"]
    arms = make_arms(names, granularities, configs, protect_question=protect_question)
    return [
        arm.loaded(predictors, arm.predictor if arm.method.name != DynTSBottom.name else None)
        for arm in arms
        if arm.method.name != DynTSBottom.name or arm.predictor == first
    ]


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[ChainProblem],
    arm: Arm[Predictor],
    config: CompressionConfig,
    *,
    batch: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Solve the problems with one method.

    Args:
        model: the embedded model.
        tokenizer: its tokenizer.
        problems: what to solve.
        arm: the method.
        config: the budget.
        batch: problems at a time.
        progress: called after each step with the number of problems done.
    """
    with compress(model, arm.method, config, arm.predictor, tokenizer=tokenizer) as session:
        started = time.perf_counter()
        solutions = solve(model, tokenizer, problems, batch=batch, progress=progress)
        seconds = time.perf_counter() - started
    return Result(arm.name(question=False), solutions, session.stats, seconds)


def compare_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[ChainProblem],
    arms: Sequence[Arm[Predictor]],
    config: CompressionConfig,
    console: Console,
) -> list[Result]:
    """Solve the problems with each method.

    Args:
        model: the embedded model.
        tokenizer: its tokenizer.
        problems: what to solve.
        arms: the methods.
        config: the budget.
        console: shows the progress: live bars on a terminal, otherwise one line a method.
    """
    results = []
    with bar("methods", len(arms)) as methods:
        for arm in arms:
            name = arm.name(question=False)
            with bar(name, len(problems), kept=True) as solved:
                result = compare(model, tokenizer, problems, arm, config, progress=solved.update)
                solved.update(len(problems), text=f"Pass@1 {result.pass_at_1:.2f}")
            methods.advance()
            if not console.is_terminal:
                console.print(f"{name}: Pass@1 {result.pass_at_1:.2f}, {result.seconds:.1f} s")
            results.append(result)
    return results
