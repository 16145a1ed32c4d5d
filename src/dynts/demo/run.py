"""`dynts demo`: every method on the same held-out problems, with a live display."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.config import CompressionConfig
from dynts.decode.contender import Contender
from dynts.demo.compare import Result, compare
from dynts.tiny.task import Problem


def run_contenders(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    contenders: Sequence[Contender],
    config: CompressionConfig,
    console: Console,
) -> list[Result]:
    """Solve the problems with each method.

    Args:
        model: the embedded model.
        tokenizer: its tokenizer.
        problems: what to solve.
        contenders: the methods.
        config: the budget.
        console: shows the progress: live bars on a terminal, otherwise one line a method.
    """
    results = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for contender in contenders:
            task = progress.add_task(contender.name, total=len(problems), note="")

            def update(done: int, note: str = "", task: TaskID = task) -> None:
                progress.update(task, completed=done, note=note)

            result = compare(model, tokenizer, problems, contender, config, progress=update)
            update(len(problems), f"Pass@1 {result.pass_at_1:.2f}")
            if not console.is_terminal:
                console.print(f"{contender.name}: Pass@1 {result.pass_at_1:.2f}, {result.seconds:.1f} s")
            results.append(result)
    return results
