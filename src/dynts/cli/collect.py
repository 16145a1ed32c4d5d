"""`dynts collect`: sample reasoning traces from a model, graded, into a folder that survives everything."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynts.cli.checks import check_chat, question_length, resolve
from dynts.cli.console import Continues, load_libraries, show
from dynts.cli.engine import EngineOptions
from dynts.config import MethodOptions, ModelSource, Sampling
from dynts.engines.ray import Cluster
from dynts.options import option, part

if TYPE_CHECKING:
    from dynts.traces.source import ProblemSource


@dataclass(kw_only=True)
class CollectCommand(Continues):
    """What `dynts collect` is given."""

    source: ModelSource = part()
    dataset: str = option(help="math-train, gsm8k-train, the id of a data set on the Hub, a folder or a file.")
    out: Path = option(help="Folder for the traces. Run the same command again to continue.")
    split: str | None = option(None, help="Split of a data set.")
    config: tuple[str, ...] = option((), help="Configuration of a data set; several are read one after another.")
    dataset_revision: str | None = option(None, help="Branch, tag or commit of a data set on the Hub.")
    question_column: str | None = option(None, help="Column that holds the question.")
    answer_column: str | None = option(None, help="Column that holds the gold answer or a solution.")
    gold: Literal["whole", "boxed", "hashes"] | None = option(
        None, help="The gold answer is the whole column, in its last \\boxed{}, or after its last ####."
    )
    id_column: str | None = option(None, help="Column with a unique id (default: id, else a hash).")
    keep_column: tuple[str, ...] = option(
        (), help="Column to keep with each trace, such as a subject; may be repeated."
    )
    limit: int | None = option(None, help="Take this many problems, drawn by --seed.")
    samples: int = option(1, help="Traces of each problem.")
    engine: EngineOptions = part()
    method: MethodOptions = part(
        method={"default": "full", "help": "What to keep in the KV cache; full keeps everything."},
        protect_question=None,
    )
    sampling: Sampling = part(
        max_new_tokens="Stop a trace after this many tokens.", seed="Seed of the sampling and of the draw of --limit."
    )
    cluster: Cluster | None = part()

    def problems(self) -> "ProblemSource":
        """Return the preset of that name or the data set, with the options that were given."""
        from dynts.traces.benchmarks import PRESETS
        from dynts.traces.source import ProblemSource

        given = {
            "split": self.split,
            "configs": self.config or None,
            "revision": self.dataset_revision,
            "question_column": self.question_column,
            "answer_column": self.answer_column,
            "gold": self.gold,
            "id_column": self.id_column,
            "keep_columns": self.keep_column or None,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS.get(self.dataset) or ProblemSource(self.dataset), **chosen)  # type: ignore[arg-type]


def collect(given: CollectCommand) -> None:
    """Sample reasoning traces from a model and grade them: the training data for `dynts label` and `dynts train`.

    Every finished trace is on the disk within seconds. The same command again continues, whatever ended the last one;
    a higher --limit or --samples adds to the folder. Under torchrun the processes share the problems.
    """
    load_libraries("dynts.collect.collect")

    from dynts.chat.written import ClosingWatch
    from dynts.collect.collect import collect, engines
    from dynts.collect.plan import Plan, collect_settings
    from dynts.extras import need
    from dynts.models import load_tokenizer
    from dynts.store.progress import Display, describe_counts
    from dynts.store.torchrun import this_rank

    need("pyarrow", "collect", "dynts collect")
    plan = Plan(given.problems(), given.sampling, given.samples, given.limit, resolve(given.method))
    spec = given.engine.spec(given.source, given.sampling, (plan.arm,))
    found = plan.survey()
    check_chat(given.source)
    settings = collect_settings(plan, found, given.source, given.engine.engine, given.engine.arguments())
    with Display("collecting") as display, engines(spec, given.cluster, display.say) as generate:
        if found.without_gold:
            display.say(f"{given.dataset}: {found.without_gold} problems without a gold answer are left out")
        watch = ClosingWatch(display.say, "give the markers that the model writes by --think-start and --think-end")
        length = question_length(lambda: load_tokenizer(given.source))
        tally = collect(plan, found, given.out, settings, generate, display, watch=watch, length=length)
        watch.conclude()
    rank = this_rank()
    share = "" if rank.world == 1 else f"share {rank.rank + 1} of {rank.world}: "
    show(f"{share}{tally.done} traces in {given.out}, {tally.correct} correct; unfit: {describe_counts(tally.dropped)}")
