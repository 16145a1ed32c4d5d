from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the folder of traces needs pyarrow: pip install 'dynts-kv[collect]'")


@pytest.fixture
def sums(write_lines: Callable[..., Path]) -> Path:
    """Thirty sums."""
    rows = [{"id": f"sum-{x}", "question": f"{x} + 1 = ?", "answer": x + 1, "level": x % 3} for x in range(30)]
    return write_lines(rows, "sums.jsonl")
