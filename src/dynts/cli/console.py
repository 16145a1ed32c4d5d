"""Where a command writes: data on standard output, all else on standard error, and errors without their traceback."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import typer


class Continues:
    """A command that goes on where it was interrupted when it is run again, of whose options this is a base."""


def show(text: object, end: str = "\n") -> None:
    """Print a result on standard output.

    Args:
        text: the result.
        end: what follows it.
    """
    from dynts.store.progress import paused

    with paused():
        print(text, end=end, flush=True)


def say(text: str) -> None:
    """Print a remark on standard error."""
    from dynts.store.progress import paused

    with paused():
        print(text, file=sys.stderr, flush=True)


def show_page(path: Path) -> None:
    """Print where a page is, in the last line of a command's results; a terminal makes it a link."""
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    text = Text.assemble("page: ", (str(path), Style(link=path.resolve().as_uri())))
    Console().print(text, soft_wrap=True)


def load_libraries(*modules: str) -> None:
    """Import PyTorch and transformers, which takes seconds, and say so on a terminal.

    Args:
        modules: that are imported too.
    """
    from dynts.store.progress import bar

    with bar("loading PyTorch and transformers"):
        for module in ("dynts.models", *modules):
            import_module(module)


class _Remarks(logging.Handler):
    """Writes what the library logs on standard error, where a live display of rich may be."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        from rich.console import Console

        from dynts.store.progress import paused

        text = f"dynts: {self.format(record)}"
        with paused():
            Console(stderr=True).print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


@contextmanager
def console(*, debug: bool, quiet: bool, again: str = "") -> Iterator[None]:
    """Show what the library logs, and end errors that a user can act on in one line.

    Args:
        debug: print the traceback of an error too.
        quiet: leave out progress and remarks that warn of nothing.
        again: what running the command again after an interruption does, in words.

    Raises:
        typer.Exit: code 2 after an error, 130 after an interruption.
    """
    from dynts.errors import DyntsError
    from dynts.store.progress import show_progress

    logger, handler = logging.getLogger("dynts"), _Remarks()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet or not sys.stderr.isatty():
        os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # read when the libraries are imported
    try:
        with show_progress():
            yield
    except DyntsError as error:
        _end(f"dynts: {error}", error, 2, debug)
    except KeyboardInterrupt as error:
        _end(f"dynts: interrupted{again and f'; {again}'}", error, 130, debug)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _end(text: str, error: BaseException, code: int, debug: bool) -> None:
    if debug:
        say("".join(traceback.format_exception(error)).rstrip())
    say(text)
    raise typer.Exit(code) from error
