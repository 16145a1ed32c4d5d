"""`dynts label`: label the thinking tokens of reasoning traces with a model's own attention."""

from dataclasses import dataclass
from pathlib import Path

from dynts.cli.checks import check_chat
from dynts.cli.console import Continues, load_libraries, show
from dynts.config import ModelSource
from dynts.engines.ray import Cluster
from dynts.options import option, part
from dynts.training.config import LabelOptions


@dataclass(kw_only=True)
class LabelCommand(Continues):
    """What `dynts label` is given."""

    source: ModelSource = part(
        name="Base model: a folder or the id of a Hub repository.", attention=None, open_thinking=None
    )
    traces: tuple[Path, ...] = option(
        help="A folder of traces, or JSON Lines with question, response (after the opening think marker), answer, "
        "optional id; several are mixed."
    )
    out: Path = option(help="Folder for the shards. Run the same command again to continue.")
    options: LabelOptions = part()
    cluster: Cluster | None = part()


def label(given: LabelCommand) -> None:
    """Label the thinking tokens of reasoning traces: the training data for `dynts train`.

    Keeps traces that finish their thinking, answer correctly (last boxed answer) and are no longer than --max-tokens,
    one per question. One teacher-forced forward per trace; attention is recomputed a few rows at a time. Under torchrun
    the processes share the traces.
    """
    load_libraries("dynts.training.labelling")

    from dynts.store.progress import Display, describe_counts
    from dynts.traces.sets import as_sets
    from dynts.training.labeller import LabellerSpec
    from dynts.training.labelling import label_on_cluster, label_with

    check_chat(given.source, opened=True)
    sets = as_sets(given.traces)
    _ = sets.sha256  # a malformed line should not cost the loading of a model first
    spec = LabellerSpec(given.source.on_this_rank(), given.options)
    name = given.source.path
    with Display("labelling") as display:
        if given.cluster is None:
            folder = label_with(spec.start(), sets, given.out, name, display.count)
        else:
            folder = label_on_cluster(spec, given.cluster, sets, given.out, name, display.count, display.say)
    dropped = describe_counts(folder.manifest["dropped"])
    show(f"{len(folder.indices)} of {folder.manifest['traces']} traces labelled in {given.out}; dropped: {dropped}")
