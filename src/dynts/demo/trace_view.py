"""How the demo shows a model's words: evicted ones are dimmed on a terminal, and dots in plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dynts.chat.markers import END

DOT = "·"
WIDE = 100
"""Columns from which on two panels stand side by side."""
_LEAST_HEIGHT = 3  # a frame and one line


@dataclass(slots=True)
class ShownTrace:
    """What one run has read and written so far.

    Args:
        title: names the run.
        words: tokens as text, prompt first; the index of a word is its position.
        prompt_tokens: how many of them are the prompt.
        evicted: positions that the cache no longer holds.
        footer: lines about the run; the live display has room for the first.
    """

    title: str
    words: list[str]
    prompt_tokens: int
    evicted: set[int] = field(default_factory=set)
    footer: str = ""

    @property
    def prompt(self) -> range:
        """Positions of the prompt."""
        return range(self.prompt_tokens)

    def steps(self) -> list[range]:
        """Positions of the generated words, a range for each line: reasoning steps, closing marker, answers, box."""
        breaks = [
            position
            for position in range(self.prompt_tokens, len(self.words))
            if position == self.prompt_tokens
            or self.words[position].endswith(":=")
            or self.words[position] in (END, "\\boxed{")
            or self.words[position - 1] == END
        ]
        return [range(start, end) for start, end in pairwise([*breaks, len(self.words)])]


def live_view(traces: Sequence[ShownTrace], console: Console) -> Group:
    """Show the question, if there is room, and the end of each trace, as high as the terminal.

    Args:
        traces: of the runs; the last one's cache tells which question tokens are evicted.
        console: the terminal.
    """
    question = _question_panel(traces[-1])
    stacked = len(traces) if console.width < WIDE else 1
    room = console.height - len(console.render_lines(question))
    above = [question]
    if room < stacked * _LEAST_HEIGHT:
        above, room = [], console.height
    height = max(room // stacked, _LEAST_HEIGHT)
    panels = [
        Panel(
            _Tail(trace),
            title=Text(trace.title),
            subtitle=Text(trace.footer.partition("\n")[0]),
            height=height,
        )
        for trace in traces
    ]
    return Group(*above, _arrange(panels, console.width))


def final_view(traces: Sequence[ShownTrace], width: int) -> Group:
    """Show the question and all of each trace with its footer.

    Args:
        traces: of the runs; the last one's cache tells which question tokens are evicted.
        width: columns of the terminal.
    """
    panels = []
    for trace in traces:
        lines = [_dimmed(trace, step) for step in trace.steps()]
        panels.append(Panel(Group(*lines, Text(), Text(trace.footer)), title=Text(trace.title)))
    return Group(_question_panel(traces[-1]), _arrange(panels, width))


def plain_view(traces: Sequence[ShownTrace]) -> str:
    """Return all of each trace as text without any formatting, evicted words replaced by dots."""
    question = traces[-1]
    blocks = [f"question: {' '.join(question.words[: question.prompt_tokens])}"]
    for trace in traces:
        lines = [f"--- {trace.title} ---"]
        if trace.evicted:
            lines.append(f"Each {DOT} is a token that was evicted by the end.")
        if not trace.evicted.isdisjoint(trace.prompt):
            lines.append(f"question: {_dotted(trace, trace.prompt)}")
        lines += [_dotted(trace, step) for step in trace.steps()]
        blocks.append("\n".join([*lines, "", trace.footer]))
    return "\n\n".join(blocks)


@dataclass(frozen=True, slots=True)
class _Tail:
    """The last lines of a trace that fit."""

    trace: ShownTrace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.max_height
        lines: list[Text] = []
        for step in reversed(self.trace.steps()):
            lines[:0] = _dimmed(self.trace, step).wrap(console, options.max_width)
            if len(lines) >= height:
                break
        yield from lines[-height:]


def _question_panel(trace: ShownTrace) -> Panel:
    title, legend = f"question, {trace.prompt_tokens} tokens", "evicted tokens are dim"
    return Panel(_dimmed(trace, trace.prompt), title=Text(title), subtitle=Text(legend))


def _arrange(panels: list[Panel], width: int) -> RenderableType:
    if width < WIDE:
        return Group(*panels)
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def _dimmed(trace: ShownTrace, positions: range) -> Text:
    line = Text()
    for position in positions:
        line.append(trace.words[position], "dim" if position in trace.evicted else None).append(" ")
    line.rstrip()
    return line


def _dotted(trace: ShownTrace, positions: range) -> str:
    return " ".join(DOT if position in trace.evicted else trace.words[position] for position in positions)
