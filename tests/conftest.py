"""Shared by all tests: one thread, since tiny models only lose by more, and no Hub."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


class _Outdated(logging.Handler):
    """Fails where transformers logs that a name is outdated: its outputs do not warn, they log, and once only."""

    def emit(self, record: logging.LogRecord) -> None:
        assert "deprecated" not in record.getMessage(), record.getMessage()


@pytest.fixture(autouse=True, scope="session")
def _no_outdated_names() -> None:
    logging.getLogger("transformers").addHandler(_Outdated())


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines, and returns the file."""

    def write(rows: Iterable[Mapping[str, object]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
