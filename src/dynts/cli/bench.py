"""`dynts bench`: how fast a model decodes under a budget, beside the full cache and the limits of the hardware."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dynts.cli.checks import check_figure, check_folder, schedules_of
from dynts.config import ModelSource
from dynts.options import option, part


@dataclass(kw_only=True)
class BenchCommand:
    """What `dynts bench` is given."""

    source: ModelSource = part(
        revision=None,
        device={"default": None, "help": "Such as cuda (default: CUDA if there is one, else the CPU)."},
        attention=None,
        open_thinking=None,
        think_start=None,
        think_end=None,
        template_args=None,
    )
    random_weights: bool = option(False, switch=True, help="Read the model's configuration only; weights are random.")
    predictor: str | None = option(None, help="Importance predictor (default: an untrained one, which costs the same).")
    method: tuple[str, ...] = option(("full", "dynts"), help="Methods to measure; repeatable.")
    batch: tuple[int, ...] = option((1,), least=1, help="Sequences at a time; repeatable.")
    generated: tuple[int, ...] = option((16_384,), least=2, help="Tokens to generate; repeatable.")
    budget: tuple[int, ...] = option((5000,), help="Most cached tokens; repeatable.")
    local_window: int | None = option(
        None, help="Most recent tokens that every compaction keeps (default: 40% of the budget)."
    )
    retention_ratio: float = option(0.4, help="Share of the remaining room that selected tokens keep at a compaction.")
    prompt: int = option(128, least=1, help="Tokens of each question.")
    mode: Literal["profile", "generate"] = option(
        "profile", help="profile: time a few steps at several cache lengths and add up; generate: generate it all."
    )
    eager: bool = option(True, help="Also measure transformers' cache with eager attention.")
    compile: bool = option(
        False, switch=True, help="Also measure each method with compiled decode steps, where possible."
    )
    plain: bool = option(
        False, switch=True, help="On CUDA, also measure each method with plain decode steps instead of recorded ones."
    )
    rounds: int = option(3, least=1, help="How often everything is measured.")
    steps: int = option(3, least=1, help="Steps timed at each cache length, in profile mode.")
    points: int = option(4, least=2, help="Cache lengths, in profile mode.")
    out: Path | None = option(None, help="Write everything measured as JSON.")
    markdown: Path | None = option(None, help="Write the tables as Markdown.")
    figure: Path | None = option(None, help="Draw step time against cached tokens (profile mode).")


def bench(given: BenchCommand) -> None:
    """Measure decoding side by side in one run: what transformers offers and dynts with each method.

    Speed-ups are over transformers' full cache with sdpa, on CUDA without cuDNN: medians over the rounds, smallest and
    largest in brackets. The floor is the time to read all weights and cached tokens once, at the bandwidth measured in
    the same process.
    """
    from dynts.errors import DyntsError
    from dynts.methods import resolve_method

    for path in (given.out, given.markdown):
        check_folder(path)
    check_figure(given.figure)
    if given.figure is not None and given.mode == "generate":
        raise DyntsError("--figure draws steps by cache length, which only --mode profile measures")
    if given.random_weights and (unused := given.source.gguf_file) is not None:
        raise DyntsError(f"--random-weights reads no weights, so {unused} would not be used: leave one of the two out")
    for name in given.method:
        resolve_method(name)
    schedules = schedules_of(given.budget, given.local_window, given.retention_ratio, given.prompt)

    from itertools import product

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from dynts.bench.grid import Effort, engines, measure
    from dynts.bench.machine import measure_machine
    from dynts.bench.profile import Work
    from dynts.decode.checkpoint import check_checkpoint
    from dynts.models import load_model, random_model
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.bench import bench_json, bench_table
    from dynts.store.files import write_text_whole
    from dynts.store.progress import quiet

    where = given.source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = replace(given.source, device=where)
    trained = None if given.predictor is None else ImportancePredictor.from_pretrained(given.predictor)
    if given.random_weights:
        loaded = random_model(source)
    else:
        loaded, _ = load_model(source)
    check_checkpoint(loaded)
    compared = [
        engines(loaded, given.method, schedule, trained, given.eager, given.compile, given.plain)
        for schedule in schedules
    ]
    works = [Work(rows, given.prompt, tokens) for rows, tokens in product(given.batch, given.generated)]
    machine = measure_machine(loaded.device, loaded.dtype)
    console = Console()
    console.print(machine.describe(), highlight=False)
    found = []
    with Progress(console=Console(stderr=True), transient=True, disable=quiet()) as bar:
        task = bar.add_task("measuring", total=given.rounds * len(works) * sum(map(len, compared)))
        effort = Effort(given.mode, given.rounds, given.steps, given.points)
        for rows in measure(compared, works, effort, machine, lambda: bar.advance(task)):
            console.print(bench_table(rows).terminal())
            found += rows
    if given.out is not None:
        write_text_whole(given.out, bench_json(found, machine, given.prompt))
    if given.markdown is not None:
        write_text_whole(given.markdown, f"{machine.describe()}\n\n{bench_table(found).markdown()}")
    if given.figure is not None:
        from dynts.report.bench import draw_steps

        draw_steps(found, given.figure)
