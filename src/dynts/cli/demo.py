"""`dynts demo`: see the method work on the embedded model, on any machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynts.cli.checks import check_figure, check_folder
from dynts.cli.console import load_libraries, show
from dynts.options import option

if TYPE_CHECKING:
    from dynts.config import CompressionConfig


TRACES = Path("dynts-demo.jsonl")
"""What the full cache wrote, for the commands that the demo names at its end."""


@dataclass(kw_only=True)
class DemoCommand:
    """What `dynts demo` is given."""

    ask: str | None = option(
        None,
        metavar="QUESTION",
        help="Watch one question instead: the number of a held-out problem, or 'a=3, b=5, c:=a+b, d:=c-a find c, d.'",
    )
    method: str | None = option(None, help="Only this method beside the full cache (default: most; with --ask: dynts).")
    label: Literal["answer", "future"] | None = option(
        None, help="What the predictor of dynts was trained on (default: both; with --ask: answer)."
    )
    budget: int | None = option(None, help="Most cached tokens of a sequence (default: 40% of the mean length).")
    problems: int = option(40, least=1, most=1000, help="How many held-out problems to solve.")
    native: bool = option(False, switch=True, help="h2o, snapkv and rkv (or the --method) also per layer and KV head.")
    figure: Path | None = option(
        None, help="Where to draw cache length against step (default: dynts-demo.png, if matplotlib is installed)."
    )
    markdown: Path | None = option(None, help="Write the table as Markdown too.")


def demo(given: DemoCommand) -> None:
    """Let a tiny reasoning model that ships with dynts solve problems with the full cache and under a budget.

    The model (0.8 million parameters) was trained on one synthetic task: this shows how the method works, not how well
    it does on large models.
    """
    load_libraries("dynts.tiny.solve")
    from transformers.utils.logging import disable_progress_bar

    from dynts.tiny.solve import budget_for, schedule

    disable_progress_bar()
    config = schedule(budget_for(0.4) if given.budget is None else given.budget)
    if given.ask is None:
        _compare(given, config)
    else:
        _ask(given.ask, given.method or "dynts", given.label or "answer", config)


def _ask(question: str, method: str, label: str, config: "CompressionConfig") -> None:
    from rich.console import Console

    from dynts.demo.ask import ask
    from dynts.demo.compare import every_arm
    from dynts.methods import resolve_method
    from dynts.tiny import load_tiny_model, load_tiny_predictor
    from dynts.tiny.question import parse_question

    problem = parse_question(question)
    name = resolve_method(method).name
    arm = next(arm for arm in every_arm({label: load_tiny_predictor(label)}) if arm.method.name == name)
    ask(problem, *load_tiny_model(), arm=arm, config=config, console=Console())


def _compare(given: DemoCommand, config: "CompressionConfig") -> None:
    from rich.console import Console

    from dynts.extras import installed, pip_install

    figure = given.figure
    if figure is None and installed("matplotlib"):
        figure = Path("dynts-demo.png")
    check_figure(figure)
    check_folder(given.markdown)
    check_folder(TRACES)

    from dynts.chat.prompts import chat_prompt, encode_prompt
    from dynts.demo.compare import BY_NAME_ONLY, compare_all, every_arm
    from dynts.demo.next_steps import next_steps, write_traces
    from dynts.methods import resolve_method
    from dynts.report.demo import results_table
    from dynts.store.files import write_text_whole
    from dynts.store.progress import bar
    from dynts.tiny import LABELS, load_tiny_model, load_tiny_predictor
    from dynts.tiny.task import HELD_OUT, make_problem

    name = None if given.method is None else resolve_method(given.method).name
    predictors = {shipped: load_tiny_predictor(shipped) for shipped in LABELS if given.label in (None, shipped)}
    compared = [
        arm
        for arm in every_arm(predictors, native=given.native)
        if arm.method.name == name or not arm.method.evicts or (name is None and arm.method.name not in BY_NAME_ONLY)
    ]
    model, tokenizer = load_tiny_model()
    chosen = [make_problem(seed) for seed in HELD_OUT[: given.problems]]
    config.check_question(
        max(len(encode_prompt(tokenizer, chat_prompt(tokenizer, problem.question))) for problem in chosen)
    )
    results = compare_all(model, tokenizer, chosen, compared, config, Console(stderr=True))
    console = Console()
    title = f"{given.problems} held-out problems, budget {config.budget}, local window {config.local_window}"
    console.print(results_table(results, title).terminal())
    if given.markdown is not None:
        write_text_whole(given.markdown, results_table(results).markdown())
    if figure is None:
        show(f"no picture without matplotlib: {pip_install('plot')}")
    else:
        from dynts.report.demo import draw_one

        longest = max(range(given.problems), key=lambda index: results[0].solutions[index].tokens)
        with bar("drawing"):
            draw_one(model, tokenizer, chosen[longest], compared[:2], config, figure)
        show(f"cache length against step, for the longest of them: {figure}")
    write_traces(chosen, results[0], TRACES)
    show("\n".join(["where to go from here:", *next_steps(TRACES, config, chosen[0].question)]))
