"""Commands in processes of their own: progress on a terminal, nothing but results elsewhere."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynts.tiny import WEIGHTS

PLAN = ("plan", "--model", str(WEIGHTS), "--json")


def start(*arguments: str, terminal: bool) -> tuple["subprocess.Popen[bytes]", int]:
    """`dynts ...` with standard error on a terminal or a pipe, and where that is read."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "dynts", *arguments]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        # whatever a shell has put into the background is deaf to it, and so are its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    return process, ours


def drain(reader: int, until: bytes | None = None) -> bytes:
    """What arrives until the other end is closed, or until some bytes have come."""
    found = b""
    while until is None or until not in found:
        try:
            piece = os.read(reader, 65536)
        except OSError:  # how a terminal says that nobody is there any more
            break
        if not piece:
            break
        found += piece
    return found


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals_and_json_is_pure(terminal: bool) -> None:
    process, reader = start(*PLAN, terminal=terminal)
    assert process.stdout is not None
    shown, out = drain(reader), process.stdout.read()
    os.close(reader)
    assert process.wait() == 0
    assert json.loads(out)["dtype"] == "float32"
    if terminal:
        assert b"loading PyTorch and transformers" in shown
        assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") >= 1
    else:
        assert shown == b""


def test_quiet_is_quiet_on_a_terminal_too() -> None:
    process, reader = start(*PLAN, "--quiet", terminal=True)
    assert drain(reader) == b""
    os.close(reader)
    assert process.wait() == 0


def test_an_interruption_leaves_the_terminal_clean(traces: Path, tmp_path: Path) -> None:
    arguments = ("label", "--model", str(WEIGHTS), "--traces", str(traces), "--out", str(tmp_path / "shards"))
    process, reader = start(*arguments, terminal=True)
    before = drain(reader, until=b"loading PyTorch")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    shown = before + drain(reader)
    os.close(reader)
    assert process.wait() == 130
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    assert shown.rstrip().endswith(b"dynts: interrupted; run the same command again to continue")
