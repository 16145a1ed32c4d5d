"""`dynts bench`: how fast a model decodes under a budget, beside the full cache and the limits of the hardware."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dynts.cli.bench_streams import serve_by_url, show_served, streams_of
from dynts.cli.checks import check_figure, check_folder, schedules_of
from dynts.cli.console import load_libraries, show_page
from dynts.config import PREFILL_TOKENS, ModelSource
from dynts.options import flag_of, option, part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dynts.bench.serving import Served
    from dynts.predictor.model import ImportancePredictor

_SERVER = ("url", "served_model_name", "api_key")
_STREAM = (
    *("rate", "requests", "seed", "prompt_sigma", "prompt_most", "generated_sigma", "generated_most"),
    "prefill_tokens",
)
_STEPS = ("eager", "rounds", "steps", "points", "figure")
_HERE = (
    *("random_weights", "predictor", "method", "batch", "budget", "local_window", "retention_ratio"),
    *("compile", "plain", "prefill_tokens", "dtype", "device"),
)


@dataclass(kw_only=True)
class BenchCommand:
    """What `dynts bench` is given."""

    source: ModelSource = part(
        revision=None,
        device={"default": None, "help": "Such as cuda (default: CUDA if there is one, else the CPU)."},
        attention=None,
        open_thinking=None,
        think_start=None,
        think_end=None,
        template_args=None,
    )
    random_weights: bool = option(False, switch=True, help="Read the model's configuration only; weights are random.")
    predictor: str | None = option(None, help="Importance predictor (default: an untrained one, which costs the same).")
    method: tuple[str, ...] = option(("full", "dynts"), help="Methods to measure; repeatable.")
    batch: tuple[int, ...] = option((1,), least=1, help="Sequences at a time; repeatable.")
    generated: tuple[int, ...] = option((16_384,), least=2, help="Tokens to generate; repeatable.")
    budget: tuple[int, ...] = option((5000,), help="Most cached tokens; repeatable.")
    local_window: int | None = option(
        None, help="Most recent tokens that every compaction keeps (default: 40% of the budget)."
    )
    retention_ratio: float = option(0.4, help="Share of the remaining room that selected tokens keep at a compaction.")
    prompt: int = option(128, least=1, help="Tokens of each question.")
    mode: Literal["profile", "generate", "serve"] = option(
        "profile",
        help="profile: time a few steps at several cache lengths and add up; generate: generate it all; serve: a "
        "stream of requests that come at random times.",
    )
    eager: bool = option(True, help="Also measure transformers' cache with eager attention.")
    compile: bool = option(
        False, switch=True, help="Also measure each method with compiled decode steps, where possible."
    )
    plain: bool = option(
        False, switch=True, help="On CUDA, also measure each method with plain decode steps instead of recorded ones."
    )
    rounds: int = option(3, least=1, help="How often everything is measured.")
    steps: int = option(3, least=1, help="Steps timed at each cache length, in profile mode.")
    points: int = option(4, least=2, help="Cache lengths, in profile mode.")
    rate: float = option(1.0, help="Requests a second, on average, in serve mode; inf lets all come at once.")
    requests: int = option(100, least=1, help="Requests of the stream, in serve mode.")
    prompt_sigma: float = option(
        0.0, help="In serve mode prompts are log-normal with --prompt as median and this sigma; 0: all the same."
    )
    prompt_most: int | None = option(None, least=1, help="Where the lengths of prompts are cut, in serve mode.")
    generated_sigma: float = option(
        0.0, help="In serve mode --generated is the median of log-normal lengths with this sigma; 0: all the same."
    )
    generated_most: int | None = option(None, least=1, help="Where those lengths are cut, in serve mode.")
    seed: int = option(0, help="Seed of the stream, in serve mode.")
    prefill_tokens: int = option(
        PREFILL_TOKENS, least=1, help="Prompt tokens read between two steps, in serve mode without --url."
    )
    url: str | None = option(
        None,
        help="In serve mode: send the stream to this server with OpenAI's API, such as http://127.0.0.1:8000/v1; of "
        "--model only the tokenizer is read.",
    )
    api_key: str | None = option(
        None, envvar="DYNTS_API_KEY", help="What the server of --url wants to be sent; better in the environment."
    )
    served_model_name: str | None = option(
        None, help="What the server of --url calls the model (default: the first that it lists)."
    )
    out: Path | None = option(None, help="Write everything measured as JSON.")
    markdown: Path | None = option(None, help="Write the tables as Markdown.")
    figure: Path | None = option(None, help="Draw step time against cached tokens (profile mode).")
    page: Path | None = option(
        None, help="Where to write tables and picture as a page, one HTML file (default: dynts-bench.html)."
    )

    @property
    def page_file(self) -> Path:
        """Where the page goes."""
        return self.page or Path("dynts-bench.html")


def bench(given: BenchCommand, explicit: Collection[str]) -> None:
    """Measure decoding side by side in one run: what transformers offers and dynts with each method.

    Speed-ups are over transformers' full cache with sdpa, on CUDA without cuDNN: medians over the rounds, smallest and
    largest in brackets. The floor is the time to read all weights and cached tokens once, at the bandwidth measured in
    the same process.

    Serve mode measures how long requests of a stream wait: with each method beside static batching, or by --url.
    """
    for path in (given.out, given.markdown, given.page_file):
        check_folder(path)
    check_figure(given.figure)
    _check_mode(given, explicit)
    load_libraries("dynts.bench.grid")
    if given.mode != "serve":
        _steps(given)
    elif given.url is None:
        _serve_here(given)
    else:
        serve_by_url(given, given.url)


def _check_mode(given: BenchCommand, explicit: Collection[str]) -> None:
    """Refuse options of which the mode makes no use.

    Raises:
        DyntsError: names the first of them.
    """
    from dynts.errors import DyntsError

    if given.figure is not None and given.mode != "profile":
        raise DyntsError("--figure draws steps by cache length, which only --mode profile measures")
    if given.mode != "serve":
        refused = dict.fromkeys((*_STREAM, *_SERVER), f"is for --mode serve, not {given.mode}")
    else:
        refused = dict.fromkeys(_STEPS, "is for the other modes, not --mode serve")
        if given.url is None:
            refused |= dict.fromkeys(_SERVER, "is for a server by --url")
        else:
            refused |= dict.fromkeys(_HERE, "is for a model in this process, and would not reach the server of --url")
    for name, why in refused.items():
        if name in explicit:
            raise DyntsError(f"{flag_of(name)} {why}: leave it out")
    if given.random_weights and (file := given.source.gguf_file) is not None:
        raise DyntsError(f"--random-weights reads no weights, so {file} would not be used: leave one of the two out")


def _load(given: BenchCommand) -> "tuple[PreTrainedModel, ImportancePredictor | None]":
    """Load the model, and the predictor if one is given."""
    import torch

    from dynts.decode.checkpoint import check_checkpoint
    from dynts.models import load_model, random_model
    from dynts.predictor.model import ImportancePredictor

    where = given.source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = replace(given.source, device=where)
    trained = None if given.predictor is None else ImportancePredictor.from_pretrained(given.predictor)
    loaded = random_model(source) if given.random_weights else load_model(source)[0]
    check_checkpoint(loaded)
    return loaded, trained


def _steps(given: BenchCommand) -> None:
    """Measure decode steps, or whole generations."""
    from dynts.methods import resolve_method

    for name in given.method:
        resolve_method(name)
    schedules = schedules_of(given.budget, given.local_window, given.retention_ratio, given.prompt)

    from itertools import product

    from rich.console import Console

    from dynts.bench.grid import Effort, engines, measure
    from dynts.bench.machine import measure_machine
    from dynts.bench.profile import Work
    from dynts.extras import installed
    from dynts.report.bench import STEPS_PICTURE, bench_json, bench_page, bench_table, bench_tables, draw_steps
    from dynts.report.offline import html_page
    from dynts.store.files import write_text_whole
    from dynts.store.progress import bar, paused

    loaded, trained = _load(given)
    compared = [
        engines(loaded, given.method, schedule, trained, given.eager, given.compile, given.plain)
        for schedule in schedules
    ]
    works = [Work(rows, given.prompt, tokens) for rows, tokens in product(given.batch, given.generated)]
    with bar("measuring the machine"):
        machine = measure_machine(loaded.device, loaded.dtype)
    console = Console()
    console.print(machine.describe(), highlight=False)
    found = []
    with bar("measuring", given.rounds * len(works) * sum(map(len, compared))) as shown:
        mode: Literal["profile", "generate"] = "profile" if given.mode == "profile" else "generate"
        effort = Effort(mode, given.rounds, given.steps, given.points)
        for rows in measure(compared, works, effort, machine, shown.advance):
            with paused():
                console.print(bench_table(rows).terminal())
            found += rows
    if given.out is not None:
        write_text_whole(given.out, bench_json(found, machine, given.prompt))
    if given.markdown is not None:
        write_text_whole(given.markdown, bench_tables(found, machine))
    if given.figure is not None:
        from dynts.report.figures import save_figure

        save_figure(draw_steps(found), given.figure)
    about = (
        f"{given.source}{' with random weights' if given.random_weights else ''}, {given.mode} mode: prompts of "
        f"{given.prompt} tokens, {given.rounds} rounds"
    )
    drawn = {}
    if mode == "profile" and installed("matplotlib"):
        from dynts.report.figures import draw_svg

        drawn[STEPS_PICTURE] = draw_svg(draw_steps(found), STEPS_PICTURE)
    write_text_whole(given.page_file, html_page(bench_page(found, machine, about, picture=bool(drawn)), drawn))
    show_page(given.page_file)


def _serve_here(given: BenchCommand) -> None:
    """Measure streams against each method in this process, rows joining and leaving, and in static batches."""
    from itertools import product

    from dynts.methods import resolve_method

    for name in given.method:
        resolve_method(name)
    streams = streams_of(given)
    longest = max(asked.prompt for stream in streams for asked in stream)
    schedules = schedules_of(given.budget, given.local_window, given.retention_ratio, longest)

    from dynts.bench.engines import TimedDynTS
    from dynts.bench.grid import engines
    from dynts.bench.machine import measure_machine
    from dynts.bench.serving import BATCHINGS, serve_stream
    from dynts.store.progress import bar

    loaded, trained = _load(given)
    compared = [
        engine
        for schedule in schedules
        for engine in engines(loaded, given.method, schedule, trained, False, given.compile, given.plain)
        if isinstance(engine, TimedDynTS)
    ]
    with bar("measuring the machine"):
        machine = measure_machine(loaded.device, loaded.dtype)
    runs = list(product(streams, given.batch, compared, BATCHINGS))

    def served(done: Callable[[], None]) -> "Iterator[Served]":
        for stream, rows, engine, batching in runs:
            yield serve_stream(engine, stream, batching, rows, given.prefill_tokens, done)

    show_served(given, served, len(runs), machine.describe(), {"machine": asdict(machine)})
