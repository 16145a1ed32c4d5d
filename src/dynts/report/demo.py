"""The demo's results: as a table, and cached tokens while generating as a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.lengths import GenerationStats
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.decode.compress import Predictor
from dynts.demo.compare import Result, compare
from dynts.report.tables import FigureTable
from dynts.tiny.task import ChainProblem

_COLUMNS = (
    "method",
    "Pass@1",
    "mean\nlength",
    "trun-\ncated",
    "peak\nKV\ntokens",
    "peak\nKV\nMiB",
    "comp-\nactions",
    "tokens\n/s",
)


def results_table(results: Iterable[Result], title: str | None = None) -> FigureTable:
    """Return the table of what each method did.

    Args:
        results: of the methods.
        title: above the table.
    """
    return FigureTable(_COLUMNS, [_cells(result) for result in results], title)


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        f"{result.pass_at_1:.2f}",
        f"{result.mean_length:.0f}",
        f"{result.truncated}",
        f"{result.peak_tokens}",
        f"{result.peak_bytes / 2**20:.1f}",
        f"{result.compactions}",
        f"{result.tokens_per_second:.0f}",
    )


def draw_cache_lengths(runs: dict[str, GenerationStats], budget: int, path: Path) -> None:
    """Draw cached tokens against generated tokens; the ending of `path` chooses the format.

    Args:
        runs: one generate() call of a single sequence each, by name.
        budget: drawn as a line.
        path: written whole or not at all.
    """
    from matplotlib.figure import Figure

    from dynts.report.figures import save_figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, stats in runs.items():
        axes.plot(*cache_lengths(stats), label=f"{name}: {stats.peak_tokens} tokens at most")
    axes.axhline(budget, color="grey", linewidth=0.8, linestyle="--", label=f"budget {budget}")
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("cached tokens")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, path)


def cache_lengths(stats: GenerationStats) -> tuple[list[int], list[int]]:
    """Return steps and cached tokens at the corners of the curve of a single sequence."""
    steps, lengths = [0], [stats.prompt_tokens]
    for step, before, after in stats.compactions:
        steps += [step, step]
        lengths += [before, after]
    last = stats.generated_tokens - 1  # the last token is not fed back
    return [*steps, last], [*lengths, lengths[-1] + last - steps[-1]]


def draw_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problem: ChainProblem,
    arms: Sequence[Arm[Predictor]],
    config: CompressionConfig,
    path: Path,
) -> None:
    """Draw the cache length of each method while it solves one problem.

    Args:
        model: the embedded model.
        tokenizer: its tokenizer.
        problem: what to solve.
        arms: the methods.
        config: the budget.
        path: of the picture; its ending chooses the format.
    """
    results = [compare(model, tokenizer, [problem], arm, config) for arm in arms]
    runs = {result.name: result.stats[0] for result in results}
    draw_cache_lengths(runs, config.budget, path)
