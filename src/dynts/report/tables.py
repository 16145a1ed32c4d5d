"""Tables of figures, for the terminal and for Markdown."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table


@dataclass(frozen=True, slots=True)
class FigureTable:
    """A table whose first column is text that may wrap, and whose others are figures that do not.

    Args:
        columns: their headings; a line break, or a hyphen before one, is where a terminal breaks them.
        rows: the cells of each.
        title: above the table on a terminal.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None

    def terminal(self) -> Table:
        """Return the table for a terminal, as narrow as its figures."""
        table = Table(title=self.title, box=SIMPLE_HEAD, padding=0, pad_edge=False)
        table.add_column(self.columns[0], overflow="fold")
        for name in self.columns[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown, without its title."""
        return markdown_table(
            [re.sub(r"-?\n(?=/)|-\n", "", name).replace("\n", " ") for name in self.columns], self.rows
        )


def plain(text: object) -> str:
    """Return text that comes from data, such as a model's name, so that Markdown shows it as it is, also in a table."""
    return re.sub(r"([\\`*\[\]<>|&~]|\b_|_\b)", r"\\\1", " ".join(str(text).split()))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, whose first column is text and whose others are figures.

    Args:
        columns: their headings.
        rows: the cells of each.
    """
    lines = [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"
