"""Every example runs as a user would run it, and prints what it is there to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def printed(script: str, folder: Path) -> str:
    """What a script prints, run in a folder of its own; it may say nothing on the other stream but progress."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def numbers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_short_and_says_what_it_shows(script: str) -> None:
    lines = (EXAMPLES / script).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')
    assert f"    python examples/{script}" in lines


def test_generate(tmp_path: Path) -> None:
    answer, lengths, compactions = printed("generate.py", tmp_path).splitlines()
    # d = c - a = 0, e = d - b = 0, f = b + c = 7, g = e + a = 7, c = a + b = 7
    assert answer.endswith("\\boxed{ ( 7 , 7 , 0 , 7 ) } <stop>")
    read, written, cached = numbers(lengths)
    assert cached == 180 < read + written
    count, before, after = numbers(compactions)
    assert count >= 2
    assert after < before == 180
