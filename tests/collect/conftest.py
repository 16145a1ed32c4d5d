import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the folder of traces needs pyarrow: pip install 'dynts[collect]'")


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Iterable[dict[str, object]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def sums(write_lines: Callable[..., Path]) -> Path:
    """Thirty sums."""
    rows = [{"id": f"sum-{x}", "question": f"{x} + 1 = ?", "answer": x + 1, "level": x % 3} for x in range(30)]
    return write_lines(rows, "sums.jsonl")
