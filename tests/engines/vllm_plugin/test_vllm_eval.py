"""`dynts eval --engine vllm` beside `--engine transformers`, on the embedded model."""

from pathlib import Path

import pytest
from vllm_engines import needs_vllm

from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from engine_eval import check_equal_to_transformers

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

NATIVE = "answer-native"


def test_texts_and_measurements_equal_those_of_transformers(tmp_path: Path) -> None:
    native = tmp_path / "native"
    known = PredictorConfig(hidden_size=128, layers=4, kv_heads=2, label=NATIVE, all_tokens=True)
    ImportancePredictor(known).save_pretrained(native)
    arguments = {"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.2}
    words = ("--method", "full,dynts,dynts-all", "--granularity", "shared,native", "--predictor", native)
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    methods = check_equal_to_transformers(tmp_path, "vllm", arguments, environment, *words)
    both = [f"{name}, {NATIVE} label{which}" for name in ("dynts", "dynts-all") for which in ("", ", native")]
    assert methods == {"full", "dynts, answer label", *both}
