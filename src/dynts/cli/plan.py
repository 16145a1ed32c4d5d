"""`dynts plan`: what a model costs under a budget, before any weights are there."""

from typing import Annotated

import typer

from dynts.cli.options import GgufFile, Revision


def plan(
    *,
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository; only its configuration is read.")],
    gguf_file: GgufFile = None,
    length: Annotated[int, typer.Option(help="Tokens generated, thinking and answer.", min=2)] = 16_384,
    question: Annotated[int, typer.Option(help="Tokens of a question.", min=1)] = 200,
    concurrency: Annotated[int, typer.Option(help="Sequences generated at a time.", min=1)] = 1,
    budget: Annotated[
        list[int] | None, typer.Option(help="Most cached tokens; repeatable (default: only the recommended one).")
    ] = None,
    local_window: Annotated[
        int | None, typer.Option(help="Most recent tokens that every compaction keeps (default: 40% of the budget).")
    ] = None,
    retention_ratio: Annotated[
        float, typer.Option(help="Share of the remaining room that selected tokens keep, with --budget.")
    ] = 0.4,
    gpu_memory: Annotated[str, typer.Option(help="Memory of the device.")] = "80GB",
    reserve: Annotated[
        float, typer.Option(help="Share of it for all but weights and cache: activations, runtime, fragmentation.")
    ] = 0.1,
    bandwidth: Annotated[str, typer.Option(help="At which its memory is read (default: H100 SXM).")] = "3.35TB/s",
    flops: Annotated[str, typer.Option(help="Of dense matrices in the dtype (default: H100 SXM, bf16).")] = "990TFLOPS",
    dtype: Annotated[str | None, typer.Option(help="dtype of weights and cache (default: the checkpoint's).")] = None,
    revision: Revision = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Say what a model costs with the full cache and under budgets: memory, sequences that fit, expected decode speed.

    Everything follows from the configuration and a roofline: a step takes as long as its weights and cached tokens take to
    read, or its FLOPs to compute, whichever is longer. Real steps are slower; `dynts bench` measures them.
    """
    from json import dumps

    from dynts.config import CompressionConfig, ModelSource
    from dynts.errors import DyntsError
    from dynts.planning.cost import Hardware, Workload, parse_quantity

    if not 0 <= reserve < 1:
        raise DyntsError(f"reserve must be at least 0 and below 1, got {reserve}: it is a share of the memory")
    hardware = Hardware(
        parse_quantity(gpu_memory, "B"), parse_quantity(bandwidth, "B/s"), parse_quantity(flops, "FLOPS"), reserve
    )
    work = Workload(question, length, concurrency)
    schedules = [
        CompressionConfig(most, round(0.4 * most) if local_window is None else local_window, retention_ratio)
        for most in budget or []
    ]
    for schedule in schedules:
        schedule.check_question(question)

    from rich.console import Console

    from dynts.models import load_config, parse_dtype
    from dynts.models.shape import ModelShape
    from dynts.planning.cost import Planner
    from dynts.planning.recommend import recommend
    from dynts.report.plan import plan_json, plan_lines, plan_markdown, plan_table

    config = load_config(ModelSource(model, revision, gguf_file))
    name = dtype or str(config.dtype or "float32").removeprefix("torch.")
    planner = Planner(ModelShape.of(config), parse_dtype(name).itemsize, hardware)
    recommended = recommend(planner, work, config.get_text_config().model_type)
    wanted = [*schedules, *([recommended.schedule] if recommended.schedule not in (None, *schedules) else [])]
    costs = [planner.cost(work, schedule) for schedule in (None, *wanted)]
    if json:
        print(dumps(plan_json(planner, work, name, costs, recommended)))
        return
    console = Console()
    for line in plan_lines(planner, work, name, costs):
        console.print(line, highlight=False, soft_wrap=True)
    if markdown:
        print(f"\n{plan_markdown(costs)}", end="")
    else:
        console.print(plan_table(costs))
    console.print(recommended.describe(), highlight=False, soft_wrap=True)
    console.print("`dynts tune` finds a setting on traces of yours", highlight=False)
