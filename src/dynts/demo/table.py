"""The demo's results as a table, for the terminal and for Markdown."""

from collections.abc import Iterable

from rich.table import Table

from dynts.demo.compare import Result
from dynts.tables import markdown_table, terminal_table

_COLUMNS = ("method", "Pass@1", "mean length", "truncated", "peak KV tokens", "peak KV MiB", "compactions", "tokens/s")
_NARROW = (
    "method",
    "Pass@1",
    "mean\nlength",
    "trun-\ncated",
    "peak\ntokens",
    "peak\nMiB",
    "comp-\nactions",
    "tokens\n/s",
)


def results_table(results: Iterable[Result], title: str) -> Table:
    """A table for the terminal."""
    return terminal_table(_NARROW, map(_cells, results), title)


def results_markdown(results: Iterable[Result]) -> str:
    """The same table in Markdown."""
    return markdown_table(_COLUMNS, map(_cells, results))


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        f"{result.pass_at_1:.2f}",
        f"{result.mean_length:.0f}",
        f"{result.truncated}",
        f"{result.peak_tokens}",
        f"{result.peak_bytes / 2**20:.1f}",
        f"{result.compactions}",
        f"{result.tokens_per_second:.0f}",
    )
