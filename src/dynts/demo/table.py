"""The demo's results as a table, for the terminal and for Markdown."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dynts.demo.compare import Result

_COLUMNS = ("Pass@1", "mean length", "truncated", "peak KV tokens", "peak KV MiB", "compactions", "tokens/s")
_NARROW = ("Pass@1", "mean\nlength", "trun-\ncated", "peak\ntokens", "peak\nMiB", "comp-\nactions", "tokens\n/s")


def results_table(results: Iterable[Result], title: str) -> Table:
    """A table for the terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("method", overflow="fold")
    for name in _NARROW:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.name, *_cells(result))
    return table


def results_markdown(results: Iterable[Result]) -> str:
    """The same table in Markdown."""
    lines = [f"| method | {' | '.join(_COLUMNS)} |", f"|---{'|---:' * len(_COLUMNS)}|"]
    lines += [f"| {result.name} | {' | '.join(_cells(result))} |" for result in results]
    return "\n".join(lines) + "\n"


def _cells(result: Result) -> tuple[str, ...]:
    return (
        f"{result.pass_at_1:.2f}",
        f"{result.mean_length:.0f}",
        f"{result.truncated}",
        f"{result.peak_tokens}",
        f"{result.peak_bytes / 2**20:.1f}",
        f"{result.compactions}",
        f"{result.tokens_per_second:.0f}",
    )
