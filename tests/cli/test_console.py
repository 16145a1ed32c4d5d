"""Where commands write: data on standard output, all else on standard error, less of it where that is asked for."""

import ast
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dynts
from command_line import run
from dynts.cli.console import console
from dynts.store import progress

pytestmark = pytest.mark.quick

WRONG = ("generate", "--model", "any", "--method", "nonsense", "a b")
SOURCE = Path(dynts.__file__).parent


@pytest.mark.parametrize("way", ["option", "environment"])
def test_an_error_keeps_its_traceback(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, plain = run(monkeypatch, capsys, *WRONG)
    assert (code, out, plain.count("\n")) == (2, "", 1)
    if way == "environment":
        monkeypatch.setenv("DYNTS_DEBUG", "1")
    code, out, err = run(monkeypatch, capsys, *WRONG, *(["--debug"] if way == "option" else []))
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last)")
    assert "in resolve_method" in err
    assert err.endswith(plain)


@pytest.mark.parametrize("way", [None, "option", "environment"])
def test_progress_can_be_silenced(
    way: str | None,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"question": f"{number}?", "response": "so</think>\\boxed{1}", "answer": "1"} for number in range(3)]
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    if way == "environment":
        monkeypatch.setenv("DYNTS_QUIET", "1")
    command = ("import", write_lines(rows, "in.jsonl"), "--out", tmp_path / "out")
    code, out, err = run(monkeypatch, capsys, *command, *(["--quiet"] if way == "option" else []))
    assert (code, out) == (0, f"3 traces in {tmp_path / 'out'}, 3 correct; unfit: none\n")
    assert ("importing: 3 of 3 traces" in err) == (way is None)
    code, out, _ = run(monkeypatch, capsys, "status", tmp_path / "out", "--json")
    assert json.loads(out)["done"] == 3


def test_what_the_library_says_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("dynts.models.load")
    for quiet in (False, True):
        with console(debug=False, quiet=quiet):
            log.info("a [remark]")
            log.warning("a warning")
    assert capsys.readouterr() == ("", "dynts: a [remark]\ndynts: a warning\ndynts: a warning\n")
    assert logging.getLogger("dynts").level == logging.NOTSET


def prints(path: Path) -> Iterator[int]:
    """Lines that print on standard output or error."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            files = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
            if not files or files[0].startswith("sys."):
                yield node.lineno


def test_only_the_console_of_the_command_line_prints() -> None:
    found = {
        f"{path.relative_to(SOURCE)}:{line}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "cli" / "console.py"
        for line in prints(path)
    }
    assert not found, "use logging, or dynts.cli.console: " + ", ".join(sorted(found))
