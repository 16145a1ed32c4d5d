"""Right traces of the embedded model, their labels, and a predictor trained on them."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.predictor.model import ImportancePredictor
from dynts.tiny import load_tiny_model
from dynts.tiny.solve import solve
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.training.config import TrainConfig
from dynts.training.labelling import label_traces
from dynts.training.shards import ShardFolder
from dynts.training.train import train_predictor


@pytest.fixture(scope="session")
def embedded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_tiny_model()


@pytest.fixture(scope="session")
def traces(embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At least ten traces, with a column "parity"."""
    problems = [make_problem(seed, steps=range(4, 6)) for seed in HELD_OUT[:14]]
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    with path.open("w") as stream:
        for index, (problem, solution) in enumerate(zip(problems, solve(*embedded, problems), strict=True)):
            row = {"id": f"t{index}", "question": problem.question, "response": solution.text, "answer": problem.answer}
            stream.write(json.dumps({**row, "parity": index % 2}) + "\n")
    return path


@pytest.fixture(scope="session")
def shards(
    embedded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    traces: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ShardFolder:
    folder = label_traces(*embedded, traces, tmp_path_factory.mktemp("labels") / "shards")
    assert len(folder.indices) >= 10
    return folder


@pytest.fixture(scope="session")
def trained(shards: ShardFolder) -> ImportancePredictor:
    config = TrainConfig(epochs=3, batch_traces=1, held_out=0.4, learning_rate=3e-3)
    return train_predictor(shards, config, group_by="parity").predictor
