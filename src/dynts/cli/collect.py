"""`dynts collect`: sample reasoning traces from a model, graded, into a folder that survives everything."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dynts.cli.engine_option import Batch, Engine, EngineArgs, engine_spec, read_engine_args
from dynts.cli.options import (
    Attention,
    Budget,
    Device,
    Dtype,
    GgufFile,
    Granularity,
    LocalWindow,
    OpenThinking,
    PredictorName,
    RetentionRatio,
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
    from dynts.traces.source import ProblemSource


def collect(
    model: Annotated[str, typer.Option(help="A folder or the id of a Hub repository.")],
    dataset: Annotated[
        str,
        typer.Option(help="math-train, gsm8k-train, the id of a data set on the Hub, a folder or a file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the traces. Run the same command again to continue.")],
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="Configuration of a data set; several are read one after another.")
    ] = None,
    dataset_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a data set on the Hub.")
    ] = None,
    question_column: Annotated[str | None, typer.Option(help="Column that holds the question.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column that holds the gold answer or a solution.")] = None,
    gold: Annotated[
        Literal["whole", "boxed", "hashes"] | None,
        typer.Option(help="The gold answer is the whole column, in its last \\boxed{}, or after its last ####."),
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column with a unique id (default: id, else a hash).")] = None,
    keep_column: Annotated[
        list[str] | None, typer.Option(help="Column to keep with each trace, such as a subject; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take this many problems, drawn by --seed.")] = None,
    samples: Annotated[int, typer.Option(help="Traces of each problem.")] = 1,
    engine: Engine = "transformers",
    batch: Batch = None,
    engine_args: EngineArgs = None,
    settings_file: SettingsFile = None,
    method: Annotated[str, typer.Option(help="What to keep in the KV cache; full keeps everything.")] = "full",
    budget: Budget = 5000,
    local_window: LocalWindow = 2000,
    retention_ratio: RetentionRatio = 0.4,
    granularity: Granularity = None,
    predictor: PredictorName = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop a trace after this many tokens.")] = 16_384,
    temperature: Temperature = 0.6,
    top_p: TopP = 0.95,
    top_k: TopK = 20,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and of the draw of --limit.")] = 0,
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
    """Sample reasoning traces from a model and grade them: the training data for `dynts label` and `dynts train`.

    Every finished trace is on the disk within seconds. The same command again continues, whatever ended the last one;
    a higher --limit or --samples adds to the folder. Under torchrun the processes share the problems.
    """
    from dynts.chat.written import ClosingWatch
    from dynts.collect.collect import collect, engines
    from dynts.collect.plan import Plan, collect_settings
    from dynts.config import CompressionConfig, ModelSource, Sampling
    from dynts.decode.arm import Arm
    from dynts.engines.ray import Cluster
    from dynts.extras import need
    from dynts.methods import check_predictor, resolve_method
    from dynts.methods.variants import configure
    from dynts.store.progress import Display, describe_counts
    from dynts.store.torchrun import this_rank

    need("pyarrow", "collect", "dynts collect")
    chosen = configure(resolve_method(method), granularity)
    schedule = CompressionConfig(budget=budget, local_window=local_window, retention_ratio=retention_ratio)
    check_predictor(method, chosen, predictor)
    chat = chat_options(open_thinking, think_start, think_end, template_arg)
    source = ModelSource(model, revision, gguf_file, dtype, device, attention, chat)
    extra_args = read_engine_args(engine, engine_args)
    problems = _source(
        dataset,
        split=split,
        configs=tuple(config) if config else None,
        revision=dataset_revision,
        question_column=question_column,
        answer_column=answer_column,
        gold=gold,
        id_column=id_column,
        keep_columns=tuple(keep_column) if keep_column else None,
    )
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
    plan = Plan(problems, sampling, samples, limit, Arm(chosen, schedule, predictor))
    cluster = None if ray is None else Cluster(ray, actors, gpus_per_actor)
    spec = engine_spec(
        engine,
        source,
        sampling,
        (plan.arm,),
        batch,
        extra_args,
    )
    found = plan.survey()
    check_chat(source)
    settings = collect_settings(plan, found, source, engine, extra_args)
    with Display("collecting") as display, engines(spec, cluster, display.say) as generate:
        if found.without_gold:
            display.say(f"{dataset}: {found.without_gold} problems without a gold answer are left out")
        watch = ClosingWatch(display.say, "give the markers that the model writes by --think-start and --think-end")
        tally = collect(plan, found, out, settings, generate, display, watch=watch)
        watch.conclude()
    rank = this_rank()
    share = "" if rank.world == 1 else f"share {rank.rank + 1} of {rank.world}: "
    print(f"{share}{tally.done} traces in {out}, {tally.correct} correct; unfit: {describe_counts(tally.dropped)}")


def _source(dataset: str, **given: Any) -> "ProblemSource":
    """The preset of that name or the data set, with the options that were given."""
    from dataclasses import replace

    from dynts.traces.benchmarks import PRESETS
    from dynts.traces.source import ProblemSource

    chosen = {name: value for name, value in given.items() if value is not None}
    return replace(PRESETS.get(dataset) or ProblemSource(dataset), **chosen)
