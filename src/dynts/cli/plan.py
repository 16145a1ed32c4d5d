"""`dynts plan`: what a model costs under a budget, before any weights are there."""

from dataclasses import dataclass
from json import dumps
from typing import TYPE_CHECKING

from dynts.cli.checks import schedules_of
from dynts.cli.console import load_libraries, say, show
from dynts.config import MEMORY_RESERVE, ModelSource
from dynts.options import option, part

if TYPE_CHECKING:
    from dynts.planning.cost import Hardware


@dataclass(kw_only=True)
class PlanCommand:
    """What `dynts plan` is given."""

    source: ModelSource = part(
        name="A folder or the id of a Hub repository; only its configuration is read.",
        dtype="dtype of weights and cache (default: the checkpoint's).",
        device=None,
        attention=None,
        open_thinking=None,
        think_start=None,
        think_end=None,
        template_args=None,
    )
    length: int = option(16_384, least=2, help="Tokens generated, thinking and answer.")
    question: int = option(200, least=1, help="Tokens of a question.")
    concurrency: int = option(1, least=1, help="Sequences generated at a time.")
    budget: tuple[int, ...] = option((), help="Most cached tokens; repeatable (default: only the recommended one).")
    local_window: int | None = option(
        None, help="Most recent tokens that every compaction keeps (default: 40% of the budget)."
    )
    retention_ratio: float = option(0.4, help="Share of the remaining room that selected tokens keep, with --budget.")
    gpu_memory: str = option("80GB", help="Memory of the device.")
    reserve: float = option(
        MEMORY_RESERVE, help="Share of it for all but weights and cache: activations, runtime, fragmentation."
    )
    bandwidth: str = option("3.35TB/s", help="At which its memory is read (default: H100 SXM).")
    flops: str = option("990TFLOPS", help="Of dense matrices in the dtype (default: H100 SXM, bf16).")
    json: bool = option(False, switch=True, help="Print one JSON object and nothing else.")
    markdown: bool = option(False, switch=True, help="Print the table as Markdown.")

    def hardware(self) -> "Hardware":
        """Return the limits of the device.

        Raises:
            DyntsError: a number has no such unit, or the reserve is no share.
        """
        from dynts.errors import DyntsError
        from dynts.planning.cost import Hardware, parse_quantity

        if not 0 <= self.reserve < 1:
            raise DyntsError(f"reserve must be at least 0 and below 1, got {self.reserve}: it is a share of the memory")
        memory, bandwidth = parse_quantity(self.gpu_memory, "B"), parse_quantity(self.bandwidth, "B/s")
        return Hardware(memory, bandwidth, parse_quantity(self.flops, "FLOPS"), self.reserve)


def plan(given: PlanCommand) -> None:
    """Say what a model costs with the full cache and under budgets: memory, sequences that fit, expected decode speed.

    Everything follows from the configuration and a roofline: a step takes as long as its weights and cached tokens take
    to read, or its FLOPs to compute, whichever is longer. Real steps are slower; `dynts bench` measures them.
    """
    load_libraries()

    from dynts.planning.cost import Workload

    hardware = given.hardware()
    schedules = schedules_of(given.budget, given.local_window, given.retention_ratio, given.question)
    work = Workload(given.question, given.length, given.concurrency)

    from rich.console import Console

    from dynts.models import load_config, parse_dtype, quantised_by
    from dynts.models.shape import ModelShape
    from dynts.planning.cost import Planner
    from dynts.planning.recommend import recommend
    from dynts.report.plan import plan_json, plan_lines, plan_table

    config = load_config(given.source)
    name = given.source.dtype or str(config.dtype or "float32").removeprefix("torch.")
    if quantised := quantised_by(config):
        say(f"dynts: the checkpoint's weights are quantised ({quantised}): {name} is counted, which takes more")
    planner = Planner(ModelShape.of(config), parse_dtype(name).itemsize, hardware)
    recommended = recommend(planner, work, config.get_text_config().model_type)
    wanted = [*schedules, *([recommended.schedule] if recommended.schedule not in (None, *schedules) else [])]
    costs = [planner.cost(work, schedule) for schedule in (None, *wanted)]
    if given.json:
        show(dumps(plan_json(planner, work, name, costs, recommended)))
        return
    console = Console()
    for line in plan_lines(planner, work, name, costs):
        console.print(line, highlight=False, soft_wrap=True)
    if given.markdown:
        show(f"\n{plan_table(costs).markdown()}", end="")
    else:
        console.print(plan_table(costs).terminal())
    console.print(recommended.describe(), highlight=False, soft_wrap=True)
    console.print("`dynts tune` finds a setting on traces of yours", highlight=False)
