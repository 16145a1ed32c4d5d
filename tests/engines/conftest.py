"""Models that the engines run (vLLM's CPU attention wants heads of 32), saved with predictors beside."""

from collections.abc import Callable
from pathlib import Path

import pytest

from decoding import random_predictor
from tiny import tiny_model
from transformers_path import MARKERS


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a random model of an architecture, and its predictors in the sub-folders `predictor` and `native`."""

    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        tiny_model(name, hidden_size=128, head_dim=32, initializer_range=0.1).save_pretrained(folder)
        random_predictor(128, think=MARKERS).save_pretrained(folder / "predictor")
        random_predictor(128, think=MARKERS, native=True).save_pretrained(folder / "native")
        return folder

    return save
