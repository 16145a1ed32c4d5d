"""`dynts eval`: how many problems of a benchmark a model solves under every method and budget, and what each costs."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynts.cli.engine_option import Batch, Engine, EngineArgs, engine_spec, read_engine_args
from dynts.cli.options import (
    Attention,
    Device,
    Dtype,
    GgufFile,
    GraderOption,
    OpenThinking,
    Revision,
    SettingsFile,
    Temperature,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    TopK,
    TopP,
    chat_options,
    check_chat,
)
from dynts.cli.ray_option import Actors, GpusPerActor, Ray

if TYPE_CHECKING:
    from dynts.cache.method import Granularity
    from dynts.config import CompressionConfig


def eval_(
    *,
    settings_file: SettingsFile = None,
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository.")],
    benchmark: Annotated[
        list[str],
        typer.Option(
            help="aime24, aime25, amc23, gk23en, math500, gpqa-diamond, gsm8k, a .jsonl, .csv or .parquet file, or NAME=FILE; "
            "several with commas."
        ),
    ],
    method: Annotated[list[str], typer.Option(help="What to keep in the KV cache, such as full,dynts,rkv.")],
    out: Annotated[Path, typer.Option(help="Folder for all results. Run the same command again to continue.")],
    predictor: Annotated[
        list[str] | None,
        typer.Option(help="Importance predictor, a folder or the id of a Hub repository; may be repeated."),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            help="h2o, snapkv, rkv, and dynts with a predictor of a native label: shared (one set of tokens for all heads, "
            "the default), native (one per layer and KV head), or shared,native."
        ),
    ] = None,
    protect_question: Annotated[
        bool, typer.Option(help="Keep the question even where the method as published would not.")
    ] = False,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="Most cached tokens, question included; several with commas (default: 5000)."),
    ] = None,
    local_window: Annotated[
        int | None, typer.Option(help="Most recent tokens that every compaction keeps (default: 2000).")
    ] = None,
    retention_ratio: Annotated[
        float | None,
        typer.Option(help="Share of the remaining room that selected tokens keep at a compaction (default: 0.4)."),
    ] = None,
    paper_settings: Annotated[
        str | None,
        typer.Option(help="Instead of the last three: the paper's for each benchmark; r1-qwen-7b or r1-llama-8b."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of each problem.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Take this many problems of each, drawn by --seed.")] = None,
    engine: Engine = "transformers",
    batch: Batch = None,
    engine_args: EngineArgs = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop a sample after this many tokens.")] = 16_384,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.95,
    top_k: TopK = 20,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and of the draw of --limit.")] = 0,
    thinking: Annotated[
        bool,
        typer.Option(help="Grade what follows the thinking; --no-thinking grades all of what a model wrote."),
    ] = True,
    grader: GraderOption = "dynts",
    open_thinking: OpenThinking = False,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    attention: Attention = None,
    revision: Revision = None,
    ray: Ray = None,
    actors: Actors = None,
    gpus_per_actor: GpusPerActor = None,
) -> None:
    """Let a model solve benchmarks under every method and budget, graded, with what each sample cost.

    Each combination gets a folder of its own below --out, as `dynts collect` writes them: every finished sample is on the
    disk within seconds, and the same command again continues. Further methods, budgets and samples add to the results.
    Under torchrun the processes share the problems.
    """
    from rich.console import Console

    from dynts.chat.written import ClosingWatch
    from dynts.collect.collect import engines
    from dynts.collect.plan import Plan
    from dynts.config import ModelSource, Sampling
    from dynts.decode.arm import make_arms
    from dynts.engines.ray import Cluster
    from dynts.errors import DyntsError
    from dynts.evaluate.arms import PlannedArm, plan_arms
    from dynts.evaluate.evaluate import check_questions, evaluate, needed_arms
    from dynts.evaluate.results import read_arm
    from dynts.extras import need
    from dynts.models import load_tokenizer
    from dynts.predictor.model import ImportancePredictor
    from dynts.report.arm_tables import arms_table, graded_by
    from dynts.store.progress import Display
    from dynts.store.torchrun import this_rank
    from dynts.traces.benchmarks import resolve_benchmark

    need("pyarrow", "collect", "dynts eval")
    rank = this_rank()
    chat = chat_options(open_thinking, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    extra_args = read_engine_args(engine, engine_args)
    predictors = {name: ImportancePredictor.from_pretrained(name).config for name in predictor or ()}
    methods = make_arms(_separated(method), _granularities(granularity), predictors, protect_question=protect_question)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    cluster = None if ray is None else Cluster(ray, actors, gpus_per_actor)
    if out.exists() and not out.is_dir():
        raise DyntsError(f"{out} is a file: give a folder for the results")
    benchmarks = [resolve_benchmark(text) for text in _separated(benchmark)]
    if twice := [name for name, times in Counter(item.name for item in benchmarks).items() if times > 1]:
        raise DyntsError(f"two benchmarks have the name {twice[0]!r}, and so the same folder: rename a file")
    plans: list[PlannedArm] = []
    for chosen in benchmarks:
        configs = _configs(chosen.name, budget, local_window, retention_ratio, paper_settings)
        plan = Plan(chosen.source, sampling, samples, limit)
        plans += plan_arms(chosen, methods, configs, plan, plan.survey())
    arms = needed_arms(plans)
    spec = engine_spec(
        engine,
        source,
        sampling,
        arms,
        batch,
        extra_args,
    )
    check_chat(source)
    check_questions(plans, load_tokenizer(source), chat)
    if engine == "vllm":
        # whose engines have one budget each: start as few as possible
        plans.sort(key=lambda plan: arms.index(plan.arm))
    answering = {"source": source, "engine": engine, "engine_args": extra_args}
    with Display("evaluating") as display, engines(spec, cluster, display.say) as generate:
        advice = (
            "give the markers that the model writes by --think-start and --think-end, or grade all that a model without "
            "thinking writes by --no-thinking"
        )
        watch = ClosingWatch(display.say, advice)
        evaluate(plans, out, generate, display, thinking=thinking, watch=watch, model=answering)
        found = [read_arm(out / plan.folder, grader) for plan in plans]
        if thinking and not watch.said:
            watch = ClosingWatch(display.say, advice)  # of all samples, those of earlier runs too
            for sample in (sample for arm in found for sample in arm.samples):
                watch.note(sample.finished, bool(sample.closed))
            watch.conclude()
    if any(len(arm.samples) < arm.manifest["total"] for arm in found):
        print(f"share {rank.rank + 1} of {rank.world} is done: the last process to end shows the results")
    else:
        Console().print(arms_table(found))
        print(graded_by(found))


def _separated(values: Iterable[str]) -> list[str]:
    """What was given with commas or by repeating the option, each once."""
    return list(dict.fromkeys(part.strip() for value in values for part in value.split(",") if part.strip()))


def _granularities(values: list[str] | None) -> list["Granularity"]:
    from dynts.errors import DyntsError

    chosen: list[Granularity] = []
    for value in _separated(values or ["shared"]):
        if value not in ("shared", "native"):
            raise DyntsError(f"granularity must be shared, native or shared,native, got {value!r}")
        chosen.append(value)  # type: ignore[arg-type]
    return chosen


def _configs(
    benchmark: str,
    budgets: list[str] | None,
    local_window: int | None,
    retention_ratio: float | None,
    paper_settings: str | None,
) -> list["CompressionConfig"]:
    """The budgets for a benchmark."""
    from dynts.config import CompressionConfig
    from dynts.errors import DyntsError
    from dynts.evaluate.arms import paper_config

    given = {"local_window": local_window, "retention_ratio": retention_ratio}
    options = {name: value for name, value in given.items() if value is not None}
    if paper_settings is not None:
        if budgets or options:
            raise DyntsError("--paper-settings sets budget, local window and retention ratio: drop it, or those")
        return [paper_config(paper_settings, benchmark)]
    sizes = _separated(budgets or ["5000"])
    if not all(size.isdecimal() for size in sizes):
        raise DyntsError(f"--budget takes whole numbers such as 3000,5000, got {','.join(sizes)}")
    return [CompressionConfig(int(size), **options) for size in sizes]  # type: ignore[arg-type]
