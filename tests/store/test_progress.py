"""Bars within bars, in one display; nothing where nobody watches."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from dynts.store import progress
from dynts.store.progress import Display, Tally, bar, paused, show_progress

pytestmark = pytest.mark.quick


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a command shows on a terminal."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    with show_progress():
        yield screen


def test_a_library_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("loading", 3) as shown:
        shown.update(2)
        shown.advance()
    assert not shown.shown
    with show_progress(), bar("loading") as shown:  # standard error is no terminal
        assert not shown.shown
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_leaves_nothing(terminal: io.StringIO) -> None:
    with bar("counting", 3) as shown:
        assert shown.shown
        shown.update(1)
        shown.advance()
        assert progress._screen.bars is not None
        progress._screen.bars.refresh()
    text = terminal.getvalue()
    assert "counting" in text
    assert "2/3" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    # at last the bar's line is erased, and the cursor comes back
    assert text.endswith("\r\x1b[2K\x1b[?25h\r")


def test_bars_within_bars_share_a_display(terminal: io.StringIO) -> None:
    with Display("collecting") as display:
        with bar("loading [a] model"):
            assert terminal.getvalue().count("\x1b[?25l") == 1
        display.update(Tally(total=3, done=2, correct=1))
        with bar("grading"), bar("asking"):
            pass
    text = terminal.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert "loading [a] model" in text
    last = text.rpartition("\x1b[2K")[2]
    assert "2/3" in last
    assert "grading" not in last


def test_bars_that_are_kept_stay(terminal: io.StringIO) -> None:
    with bar("methods", 2):
        for name in ("one", "two"):
            with bar(name, 1, kept=True) as shown:
                shown.update(1, text="done")
    last = terminal.getvalue().rpartition("\x1b[2K")[2]
    assert "one" in last
    assert "two" in last
    assert "methods" not in last


def test_others_write_while_bars_are_away(terminal: io.StringIO) -> None:
    with bar("measuring"):
        with paused():
            assert terminal.getvalue().count("\x1b[?25h") == 1
            terminal.write("a table\n")
        assert terminal.getvalue().count("\x1b[?25l") == 2
    assert "\x1b[2Ka table\n" in terminal.getvalue()


def test_quiet_shows_no_bar(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("dynts"), "level", logging.WARNING)
    with bar("measuring"), Display("collecting"):
        pass
    assert terminal.getvalue() == ""


def test_an_error_ends_the_display(terminal: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), bar("measuring"), bar("drawing"):
        raise KeyboardInterrupt
    assert terminal.getvalue().count("\x1b[?25h") == 1
    assert type(sys.stdout).__name__ != "FileProxy"
    with bar("again") as shown:
        assert shown.shown
