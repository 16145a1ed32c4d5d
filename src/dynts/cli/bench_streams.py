"""What `dynts bench --mode serve` draws, sends to a server, and shows."""

from collections.abc import Callable, Iterator, Mapping
from math import isinf
from typing import TYPE_CHECKING, Any

from dynts.cli.console import show_page

if TYPE_CHECKING:
    from dynts.bench.serving import Served
    from dynts.bench.stream import Arrival
    from dynts.cli.bench import BenchCommand

_DRAWN = ("rate", "requests", "seed", "prompt", "prompt_sigma", "prompt_most", "generated_sigma", "generated_most")


def streams_of(given: "BenchCommand") -> "list[list[Arrival]]":
    """Draw a stream for each `--generated`.

    Raises:
        DyntsError: a rate or a length is outside its range.
    """
    from dynts.bench.stream import Lengths, poisson_stream

    prompts = Lengths(given.prompt, given.prompt_sigma, given.prompt_most)
    lengths = [Lengths(tokens, given.generated_sigma, given.generated_most) for tokens in given.generated]
    return [poisson_stream(given.rate, given.requests, prompts, tokens, given.seed) for tokens in lengths]


def serve_by_url(given: "BenchCommand", url: str) -> None:
    """Measure streams against a server that runs.

    Args:
        given: the command.
        url: of the server's API.

    Raises:
        DyntsError: the server does not answer, or takes no request.
    """
    from dynts.bench.client import ask_server
    from dynts.models import load_tokenizer

    streams = streams_of(given)
    tokenizer = load_tokenizer(given.source)

    def served(done: Callable[[], None]) -> "Iterator[Served]":
        for stream in streams:
            yield ask_server(url, tokenizer, stream, given.served_model_name, given.api_key, done)

    show_served(given, served, len(streams), f"the server at {url}", {"url": url})


def show_served(
    given: "BenchCommand",
    served: "Callable[[Callable[[], None]], Iterator[Served]]",
    count: int,
    where: str,
    about: Mapping[str, Any],
) -> None:
    """Show each stream that has been served, then write all of them.

    Args:
        given: the command.
        served: serves the streams, and calls what it is given after each request.
        count: how many it serves.
        where: they are served, in words.
        about: the same for the JSON.
    """
    from rich.console import Console

    from dynts.bench.latency import summarize_stream
    from dynts.report.bench import serving_json, serving_markdown, serving_page, serving_tables
    from dynts.report.offline import html_page
    from dynts.store.files import write_text_whole
    from dynts.store.progress import bar, paused

    console = Console()
    console.print(where, highlight=False)
    found = []
    with bar("requests", count * given.requests) as shown:
        for one in served(shown.advance):
            found.append((summarize_stream(one), one))
            with paused():
                for table in serving_tables([found[-1][0]]):
                    console.print(table.terminal())
    remarks = [f"{remark}\n" for row, _ in found for remark in row.remarks()]
    for remark in dict.fromkeys(remarks):
        console.print(remark, end="", highlight=False, markup=False)
    if given.out is not None:
        drawn = {name: getattr(given, name) for name in _DRAWN}
        drawn["rate"] = None if isinf(given.rate) else given.rate  # JSON has no infinity
        write_text_whole(given.out, serving_json(found, {**about, **drawn}))
    tables = serving_markdown([row for row, _ in found], where)
    if given.markdown is not None:
        write_text_whole(given.markdown, tables)
    described = (
        f"{given.source}: streams of {given.requests} requests, {given.rate:g} a second on average, prompts of "
        f"{given.prompt} tokens"
    )
    write_text_whole(given.page_file, html_page(serving_page(tables, described), {}))
    show_page(given.page_file)
