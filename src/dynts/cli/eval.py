"""`dynts eval`: how many problems of a benchmark a model solves under every method and budget, and what each costs."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynts.cli.checks import check_chat, question_length, separated
from dynts.cli.console import Continues, load_libraries, show
from dynts.cli.engine import EngineOptions
from dynts.config import CompressionConfig, ModelSource, Sampling
from dynts.engines import ENGINES
from dynts.engines.ray import Cluster
from dynts.options import option, part

if TYPE_CHECKING:
    from dynts.cache.method import Granularity
    from dynts.decode.arm import Arm
    from dynts.evaluate.arms import PlannedArm

GRADER_HELP = "Whose verdicts count: dynts's rules, or math-verify, the library alone, as others use it. Both are kept."


@dataclass(kw_only=True)
class EvalCommand(Continues):
    """What `dynts eval` is given."""

    source: ModelSource = part()
    benchmark: tuple[str, ...] = option(
        help="aime24, aime25, amc23, gk23en, math500, gpqa-diamond, gsm8k, a .jsonl, .csv or .parquet file, or "
        "NAME=FILE; several with commas."
    )
    method: tuple[str, ...] = option(help="What to keep in the KV cache, such as full,dynts,rkv.")
    out: Path = option(help="Folder for all results. Run the same command again to continue.")
    predictor: tuple[str, ...] = option(
        (), help="Importance predictor, a folder or the id of a Hub repository; may be repeated."
    )
    granularity: tuple[str, ...] = option(
        (),
        help="h2o, snapkv, rkv, random, keydiff, vase, and dynts with a predictor of a native label: shared (one set "
        "of tokens for all heads; the default but for random), native (one per layer and KV head), or shared,native.",
    )
    protect_question: bool = option(False, help="Keep the question even where the method as published would not.")
    budget: tuple[str, ...] = option(
        (), help="Most cached tokens, question included; several with commas (default: 5000)."
    )
    local_window: int | None = option(None, help="Most recent tokens that every compaction keeps (default: 2000).")
    retention_ratio: float | None = option(
        None, help="Share of the remaining room that selected tokens keep at a compaction (default: 0.4)."
    )
    threshold: float | None = option(
        None, help="Keep only what the method scores above this, up to the budget (default: as many as fit)."
    )
    paper_settings: str | None = option(
        None, help="Instead of the last four: the paper's for each benchmark; r1-qwen-7b or r1-llama-8b."
    )
    samples: int = option(5, help="Samples of each problem.")
    limit: int | None = option(None, help="Take this many problems of each, drawn by --seed.")
    engine: EngineOptions = part()
    sampling: Sampling = part(
        max_new_tokens="Stop a sample after this many tokens.", seed="Seed of the sampling and of the draw of --limit."
    )
    thinking: bool = option(
        True, help="Grade what follows the thinking; --no-thinking grades all of what a model wrote."
    )
    grader: Literal["dynts", "math-verify"] = option("dynts", help=GRADER_HELP)
    cluster: Cluster | None = part()

    def granularities(self) -> "list[Granularity]":
        """Return the granularities that were asked for: none where each method is to be as it is by default.

        Raises:
            DyntsError: there is no such one.
        """
        from dynts.errors import DyntsError

        chosen: list[Granularity] = []
        for value in separated(self.granularity):
            if value not in ("shared", "native"):
                raise DyntsError(f"granularity must be shared, native or shared,native, got {value!r}")
            chosen.append(value)  # type: ignore[arg-type]
        return chosen

    def budgets(self, benchmark: str) -> list[CompressionConfig]:
        """Return the budgets for a benchmark.

        Raises:
            DyntsError: a budget is no number, or given twice.
        """
        from dynts.errors import DyntsError
        from dynts.evaluate.arms import paper_config

        names = ("local_window", "retention_ratio", "threshold")
        given = {name: getattr(self, name) for name in names}
        options = {name: value for name, value in given.items() if value is not None}
        if self.paper_settings is not None:
            if self.budget or options:
                raise DyntsError("--paper-settings sets budget, local window and retention ratio: drop it, or those")
            return [paper_config(self.paper_settings, benchmark)]
        sizes = separated(self.budget or ["5000"])
        if not all(size.isdecimal() for size in sizes):
            raise DyntsError(f"--budget takes whole numbers such as 3000,5000, got {','.join(sizes)}")
        return [CompressionConfig(int(size), **options) for size in sizes]

    def arms(self) -> "list[Arm[str]]":
        """Return the arms that were asked for, without a budget.

        Raises:
            DyntsError: there is no such method, or a predictor is missing or cannot be read.
        """
        from dynts.decode.arm import make_arms
        from dynts.predictor.model import ImportancePredictor

        predictors = {name: ImportancePredictor.from_pretrained(name).config for name in self.predictor}
        return make_arms(
            separated(self.method), self.granularities(), predictors, protect_question=self.protect_question
        )

    def planned(self) -> "list[PlannedArm]":
        """Return all arms with all budgets on all benchmarks.

        Raises:
            DyntsError: an option is wrong, or a benchmark cannot be read.
        """
        from dynts.collect.plan import Plan
        from dynts.errors import DyntsError
        from dynts.evaluate.arms import plan_arms
        from dynts.traces.benchmarks import resolve_benchmark

        arms = self.arms()
        if self.out.exists() and not self.out.is_dir():
            raise DyntsError(f"{self.out} is a file: give a folder for the results")
        benchmarks = [resolve_benchmark(text) for text in separated(self.benchmark)]
        if twice := [name for name, times in Counter(item.name for item in benchmarks).items() if times > 1]:
            raise DyntsError(f"two benchmarks have the name {twice[0]!r}, and so the same folder: rename a file")
        found: list[PlannedArm] = []
        for chosen in benchmarks:
            configs = self.budgets(chosen.name)
            plan = Plan(chosen.source, self.sampling, self.samples, self.limit)
            found += plan_arms(chosen, arms, configs, plan, plan.survey())
        return found


def eval_(given: EvalCommand) -> None:
    """Let a model solve benchmarks under every method and budget, graded, with what each sample cost.

    Each combination gets a folder of its own below --out, as `dynts collect` writes them: every finished sample is on
    the disk within seconds, and the same command again continues. Further methods, budgets and samples add to the
    results. Under torchrun the processes share the problems.
    """
    load_libraries("dynts.evaluate.evaluate")

    from rich.console import Console

    from dynts.chat.written import ClosingWatch
    from dynts.collect.collect import engines
    from dynts.evaluate.evaluate import check_questions, evaluate, needed_arms
    from dynts.evaluate.results import read_arm
    from dynts.extras import need
    from dynts.models import load_tokenizer
    from dynts.report.arm_tables import arms_table, graded_by
    from dynts.store.progress import Display
    from dynts.store.torchrun import this_rank

    need("pyarrow", "collect", "dynts eval")
    rank, source, engine = this_rank(), given.source, given.engine
    answering = {"source": source, "engine": engine.engine, "engine_args": engine.arguments()}
    plans = given.planned()
    arms = needed_arms(plans)
    spec = engine.spec(source, given.sampling, arms)
    check_chat(source)
    tokenizer = load_tokenizer(source)
    check_questions(plans, tokenizer, source.chat)
    if ENGINES[engine.engine].one_arm:  # start as few as possible
        plans.sort(key=lambda plan: arms.index(plan.arm))
    with Display("evaluating") as display, engines(spec, given.cluster, display.say) as generate:
        advice = (
            "give the markers that the model writes by --think-start and --think-end, or grade all that a model "
            "without thinking writes by --no-thinking"
        )
        watch = ClosingWatch(display.say, advice)
        length = question_length(lambda: tokenizer)
        evaluate(
            plans, given.out, generate, display, thinking=given.thinking, watch=watch, model=answering, length=length
        )
        found = [read_arm(given.out / plan.folder, given.grader) for plan in plans]
        if given.thinking and not watch.said:
            watch = ClosingWatch(display.say, advice)  # of all samples, those of earlier runs too
            for sample in (sample for arm in found for sample in arm.samples):
                watch.note(sample.finished, bool(sample.closed))
            watch.conclude()
    if any(len(arm.samples) < arm.manifest["total"] for arm in found):
        show(f"share {rank.rank + 1} of {rank.world} is done: the last process to end shows the results")
    else:
        Console().print(arms_table(found).terminal())
        show(graded_by(found))
