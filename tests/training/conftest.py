from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from tiny_traces import ARCHITECTURES, build_model, build_tokenizer, make_row


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_model(request.param)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    return build_model("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def traces(write_lines: Callable[..., Path]) -> Path:
    return write_lines([make_row(index, steps=6 + index % 5) for index in range(12)])


@pytest.fixture
def shards(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, traces: Path, tmp_path: Path) -> ShardFolder:
    return label_traces(model, tokenizer, traces, tmp_path / "shards", future_window=4)


@pytest.fixture
def saved_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
