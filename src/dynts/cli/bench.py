"""`dynts bench`: how fast a model decodes under a budget, beside the full cache and the limits of the hardware."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dynts.cli.options import Dtype, GgufFile, RetentionRatio


def bench(
    *,
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository.")],
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Read the model's configuration only; weights are random.")
    ] = False,
    gguf_file: GgufFile = None,
    predictor: Annotated[
        str | None, typer.Option(help="Importance predictor (default: an untrained one, which costs the same).")
    ] = None,
    method: Annotated[list[str], typer.Option(help="Methods to measure; repeatable.")] = ["full", "dynts"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(help="Sequences at a time; repeatable.", min=1)] = [1],  # noqa: B006
    generated: Annotated[list[int], typer.Option(help="Tokens to generate; repeatable.", min=2)] = [16_384],  # noqa: B006
    budget: Annotated[list[int], typer.Option(help="Most cached tokens; repeatable.")] = [5000],  # noqa: B006
    local_window: Annotated[
        int | None, typer.Option(help="Most recent tokens that every compaction keeps (default: 40% of the budget).")
    ] = None,
    retention_ratio: RetentionRatio = 0.4,
    prompt: Annotated[int, typer.Option(help="Tokens of each question.", min=1)] = 128,
    mode: Annotated[
        Literal["profile", "generate"],
        typer.Option(help="profile: time a few steps at several cache lengths and add up; generate: generate it all."),
    ] = "profile",
    eager: Annotated[bool, typer.Option(help="Also measure transformers' cache with eager attention.")] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also measure each method with compiled decode steps, where possible.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Steps timed at each cache length, in profile mode.", min=1)] = 3,
    points: Annotated[int, typer.Option(help="Cache lengths, in profile mode.", min=2)] = 4,
    dtype: Dtype = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda (default: CUDA if there is one, else the CPU).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything measured as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw step time against cached tokens (profile mode).")] = None,
) -> None:
    """Measure decoding side by side in one run: transformers' full cache (sdpa, eager) and dynts with each method.

    Speed-ups are over transformers' full cache with sdpa: medians over the rounds, smallest and largest in brackets. The
    floor is the time to read all weights and cached tokens once, at the bandwidth measured in the same process.
    """
    from dynts.cli.outputs import check_figure, check_folder
    from dynts.config import CompressionConfig, ModelSource
    from dynts.errors import DyntsError
    from dynts.methods import resolve_method

    for path in (out, markdown):
        check_folder(path)
    check_figure(figure)
    if figure is not None and mode == "generate":
        raise DyntsError("--figure draws steps by cache length, which only --mode profile measures")
    if random_weights and gguf_file is not None:
        raise DyntsError(
            f"--random-weights reads no weights, so {gguf_file} would not be used: leave one of the two out"
        )
    for name in method:
        resolve_method(name)
    schedules = []
    for most in budget:
        window = round(0.4 * most) if local_window is None else local_window
        schedules.append(CompressionConfig(most, window, retention_ratio))
        schedules[-1].check_question(prompt)

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
    from dynts.report.bench import bench_json, bench_markdown, bench_table
    from dynts.store.files import write_text_whole

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = ModelSource(model, gguf_file=gguf_file, dtype=dtype, device=where)
    trained = None if predictor is None else ImportancePredictor.from_pretrained(predictor)
    if random_weights:
        loaded = random_model(source)
    else:
        loaded, _ = load_model(source)
    check_checkpoint(loaded)
    compared = [engines(loaded, method, schedule, trained, eager, compile) for schedule in schedules]
    works = [Work(rows, prompt, tokens) for rows, tokens in product(batch, generated)]
    machine = measure_machine(loaded.device, loaded.dtype)
    console = Console()
    console.print(machine.describe(), highlight=False)
    found = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=rounds * len(works) * sum(map(len, compared)))
        effort = Effort(mode, rounds, steps, points)
        for rows in measure(compared, works, effort, machine, lambda: bar.advance(task)):
            console.print(bench_table(rows))
            found += rows
    if out is not None:
        write_text_whole(out, bench_json(found, machine, prompt))
    if markdown is not None:
        write_text_whole(markdown, f"{machine.describe()}\n\n{bench_markdown(found)}")
    if figure is not None:
        from dynts.report.bench import draw_steps

        draw_steps(found, figure)
