"""Label sets of traces into a folder of shards, resumably."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.engines.ray import ActorPool, Cluster, Work
from dynts.errors import DyntsError
from dynts.grading.grader import Grader
from dynts.predictor.label import looks_ahead
from dynts.store.lock import hold
from dynts.store.progress import describe_counts
from dynts.store.torchrun import this_rank
from dynts.traces.filters import REASONS, judge, select_traces
from dynts.traces.sets import TraceSets, as_sets
from dynts.traces.tokens import tokenize_trace
from dynts.training.config import LabelOptions
from dynts.training.labeller import Labeller, LabellerSpec, LabelTask
from dynts.training.shards import MADE_BY, Shard, ShardFolder

Progress = Callable[[int, int], None]
"""Called with the number of traces done and their total."""
Label = Callable[[Iterator[LabelTask]], Iterable[tuple[int, Shard]]]
"""Labels tasks, here or elsewhere: pairs of a task's index and its shard, in any order."""


def label_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    name: str = "",
    progress: Progress | None = None,
    chat: ChatOptions = DEFAULT_CHAT,
    **options: Any,
) -> ShardFolder:
    """Label the fit traces of a file or folder, or of several.

    The same call on the same folder continues where the last one stopped; under `torchrun` the processes share the
    traces.

    Args:
        model: the base model of the predictor, on any device or several.
        tokenizer: its tokenizer.
        traces: JSON Lines, see `dynts.traces.traces`, or folders written by `dynts collect` and `dynts import`.
        out: the folder of shards.
        name: the model's name in the manifest; its `name_or_path` if empty.
        progress: called after each trace.
        chat: how the model is talked to.
        options: fields of `LabelOptions`.

    Raises:
        DyntsError: a bad setting or file, a folder with other settings or in use, a full disk.
    """
    labeller = Labeller(model, tokenizer, LabelOptions(**options), chat)
    return label_with(labeller, as_sets(traces), out, name or str(model.name_or_path), progress)


def label_with(
    labeller: Labeller, sets: TraceSets, out: str | Path, name: str, progress: Progress | None = None
) -> ShardFolder:
    """Label as `label_traces` does, with a labeller that is loaded.

    Args:
        labeller: the labeller.
        sets: the traces.
        out: the folder of shards.
        name: of the model, for the manifest.
        progress: is told how many of how many are done.
    """
    return _fill(
        out,
        sets,
        labeller.tokenizer,
        labeller.options,
        labeller.chat,
        {"model": name, **labeller.describe()},
        lambda tasks: ((task.index, labeller.label(task)) for task in tasks),
        progress,
    )


def label_on_cluster(
    spec: LabellerSpec,
    cluster: Cluster,
    sets: TraceSets,
    out: str | Path,
    name: str,
    progress: Progress | None,
    say: Callable[[str], object],
) -> ShardFolder:
    """Label in the actors of a Ray cluster, a model in each; this process alone writes the folder.

    Args:
        spec: how to start a labeller.
        cluster: the actors.
        sets: the traces.
        out: the folder of shards.
        name: of the model, for the manifest.
        progress: is told how many of how many are done.
        say: shows a remark.
    """

    def prepare() -> Work:
        labeller = spec.start()

        def work(tasks: Iterator[LabelTask | _Question]) -> Iterator[tuple[str, Any]]:
            for task in tasks:
                yield (
                    task.id,
                    labeller.describe() if isinstance(task, _Question) else (task.index, labeller.label(task)),
                )

        return work

    with ActorPool(cluster, prepare, say) as pool:
        [about] = pool.work([_Question()], 1)
        return _fill(
            out,
            sets,
            spec.tokenizer(),
            spec.options,
            spec.source.chat,
            {"model": name, **about},
            lambda tasks: pool.work(tasks, 1),
            progress,
        )


class _Question:
    """Asks an actor for what the manifest says of its model."""

    id = "describe"


def _fill(
    out: str | Path,
    sets: TraceSets,
    tokenizer: PreTrainedTokenizerBase,
    options: LabelOptions,
    chat: ChatOptions,
    about: dict[str, Any],
    label: Label,
    progress: Progress | None = None,
) -> ShardFolder:
    """Make the shards that a folder lacks.

    Args:
        out: the folder.
        sets: the traces.
        tokenizer: the model's.
        options: what to keep, and how to label it.
        chat: how the model is talked to.
        about: the model, for the manifest; see `Labeller.describe`.
        label: makes the shards; called only if some are missing.
        progress: called after each trace.

    Raises:
        DyntsError: see `label_traces`.
    """
    rank = this_rank()
    settings = {
        **about,
        "labels": list(options.labels),
        "future_window": options.future_window if looks_ahead(options.labels) else None,
        "tokens_per_trace": options.tokens_per_trace,
        "seed": options.seed if options.tokens_per_trace else None,
        # only where it is set: folders of earlier versions can be continued
        **({"all_tokens": True} if options.all_tokens else {}),
        **options.selection(sets, chat),
    }
    with hold(Path(out), rank, MADE_BY) as held:
        folder = ShardFolder.create(out, settings, lambda: select(sets, tokenizer, options, chat))
        if rank.world == 1:
            for partial in folder.path.glob(".*.safetensors.partial"):
                partial.unlink()
        mine = [index for index in folder.indices if rank.owns(str(index))]
        missing = {index for index in mine if not folder.is_whole(index)}
        done = started_with = len(mine) - len(missing)
        tokens = 0

        def note(force: bool = False) -> None:
            held.note(force, done=done, total=len(mine), started_with=started_with, tokens=tokens)
            if progress is not None:
                progress(done, len(mine))

        note(force=True)
        if missing:
            for index, shard in label(_tasks(sets, tokenizer, options, chat, missing)):
                folder.write(index, shard)
                done += 1
                tokens += len(shard.ids)
                note()
    return folder


def select(
    sets: TraceSets, tokenizer: PreTrainedTokenizerBase, options: LabelOptions, chat: ChatOptions = DEFAULT_CHAT
) -> dict[str, Any]:
    """Find the traces to train on, see `dynts.traces.filters.select_traces`; of each only its place is kept.

    Args:
        sets: the traces.
        tokenizer: the model's.
        options: what to keep.
        chat: how the model is talked to.

    Returns:
        Facts for the manifest: "traces", how many there are; "indices" of the chosen ones; "dropped", counts by reason.

    Raises:
        DyntsError: no trace is left.
    """
    indices: list[int] = []
    dropped: Counter[str] = Counter()
    total = 0
    for index, chosen in enumerate(
        select_traces(
            sets,
            tokenizer,
            max_tokens=options.max_tokens,
            keep_incorrect=options.keep_incorrect,
            chat=chat,
        )
    ):
        total += 1
        if isinstance(chosen, str):
            dropped[chosen] += 1
        else:
            indices.append(index)
    counts = {reason: dropped[reason] for reason in REASONS}
    if not indices:
        raise DyntsError(f"no trace is fit for training; dropped: {describe_counts(counts)}")
    return {
        "traces_file": ", ".join(sets.names),
        "traces": total,
        "dropped": counts,
        "indices": indices[: options.limit],
    }


def _tasks(
    sets: TraceSets, tokenizer: PreTrainedTokenizerBase, options: LabelOptions, chat: ChatOptions, missing: set[int]
) -> Iterator[LabelTask]:
    with Grader() as grader:
        for index, trace in enumerate(sets):
            if index in missing:
                correct = not options.keep_incorrect or judge(trace.response, trace.answer, grader)[1]
                yield LabelTask(index, trace, tokenize_trace(tokenizer, trace, chat), correct)
