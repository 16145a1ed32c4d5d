"""`dynts label`: label the thinking tokens of reasoning traces with a model's own attention."""

from pathlib import Path
from typing import Annotated

import typer

from dynts.cli.options import (
    Device,
    Dtype,
    GgufFile,
    Revision,
    TemplateArg,
    ThinkEnd,
    ThinkStart,
    chat_options,
    check_chat,
)
from dynts.cli.ray_option import Actors, GpusPerActor, Ray


def label(
    model: Annotated[str, typer.Option(help="Base model: a folder or the id of a Hub repository.")],
    traces: Annotated[
        list[Path],
        typer.Option(
            help="A folder of traces, or JSON Lines with question, response (after the opening think marker), answer, "
            "optional id; several are mixed."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards. Run the same command again to continue.")],
    labels: Annotated[
        str,
        typer.Option(
            help="answer: mean attention from the answer; future: most attention from any later token; answer-native, "
            "future-native: the same for each layer and KV head."
        ),
    ] = "answer,future",
    future_window: Annotated[
        int, typer.Option(help="The future label counts tokens more than this many positions later.")
    ] = 32,
    max_tokens: Annotated[int, typer.Option(help="Drop longer traces, prompt and answer included.")] = 16_384,
    keep_incorrect: Annotated[
        bool, typer.Option(help="Keep traces whose answer is wrong or cannot be graded.")
    ] = False,
    all_tokens: Annotated[
        bool,
        typer.Option("--all-tokens", help="Label question and answer tokens too, for predictors that serve dynts-all."),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Label the first fit traces only, this many.")] = None,
    tokens_per_trace: Annotated[
        int | None, typer.Option(help="Store hidden states of this many random thinking tokens a trace (default: all).")
    ] = None,
    store_dtype: Annotated[
        str | None, typer.Option(help="dtype of the stored hidden states (default: the model's).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the choice of tokens.")] = 0,
    chunk: Annotated[
        int, typer.Option(help="Rows of attention in memory at a time; does not change the result.")
    ] = 128,
    think_start: ThinkStart = None,
    think_end: ThinkEnd = None,
    template_arg: TemplateArg = None,
    gguf_file: GgufFile = None,
    dtype: Dtype = None,
    device: Device = "auto",
    revision: Revision = None,
    ray: Ray = None,
    actors: Actors = None,
    gpus_per_actor: GpusPerActor = None,
) -> None:
    """Label the thinking tokens of reasoning traces: the training data for `dynts train`.

    Keeps traces that finish their thinking, answer correctly (last boxed answer) and are no longer than --max-tokens,
    one per question. One teacher-forced forward per trace; attention is recomputed a few rows at a time. Under torchrun
    the processes share the traces.
    """
    from dynts.config import ModelSource
    from dynts.models import parse_dtype
    from dynts.store.progress import Display, describe_counts
    from dynts.traces.sets import as_sets
    from dynts.training.labeller import LabellerSpec, LabelOptions
    from dynts.training.labelling import label_on_cluster, label_with

    chat = chat_options(False, think_start, think_end, template_arg)
    options = LabelOptions(
        labels=tuple(name.strip() for name in labels.split(",")),
        future_window=future_window,
        max_tokens=max_tokens,
        keep_incorrect=keep_incorrect,
        limit=limit,
        tokens_per_trace=tokens_per_trace,
        store_dtype=None if store_dtype is None else parse_dtype(store_dtype),
        seed=seed,
        chunk=chunk,
        all_tokens=all_tokens,
    )
    source = ModelSource(model, revision, gguf_file, dtype, device, chat=chat).on_this_rank()
    check_chat(source, opened=True)
    sets = as_sets(traces)
    _ = sets.sha256  # a malformed line should not cost the loading of a model first
    spec = LabellerSpec(source, options)
    with Display("labelling") as display:
        if ray is None:
            folder = label_with(spec.start(), sets, out, source.path, display.count)
        else:
            from dynts.engines.ray import Cluster

            cluster = Cluster(ray, actors, gpus_per_actor)
            folder = label_on_cluster(spec, cluster, sets, out, source.path, display.count, display.say)
    dropped = describe_counts(folder.manifest["dropped"])
    print(f"{len(folder.indices)} of {folder.manifest['traces']} traces labelled in {out}; dropped: {dropped}")
