"""Loading base models, and what is said when that fails."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from dynts.errors import DyntsError
from dynts.models import load_model, parse_dtype


@pytest.mark.quick
def test_a_folder_is_loaded_and_stdout_stays_clean(
    saved_model: Path, model: PreTrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded, tokenizer = load_model(saved_model, dtype="bfloat16", attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"
    assert not loaded.training
    assert tokenizer.chat_template
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(load_model(saved_model)[0](ids).logits, model(ids).logits)
    assert capfd.readouterr().out == ""


def test_missing_and_damaged_models_are_named(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match=r"model folder .*absent does not exist"):
        load_model(tmp_path / "absent")
    with pytest.raises(DyntsError, match="not a floating point dtype"):
        load_model(saved_model, dtype="int8")
    weights = saved_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DyntsError, match="could not load the model"):
        load_model(saved_model)


def test_a_missing_tokenizer_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(DyntsError, match=r"tokenizer of .*bare"):
        load_model(tmp_path / "bare")


def test_unreadable_gguf_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(b"GGUF")
    with pytest.raises(DyntsError, match=r"absent\.gguf does not exist; GGUF files in .*: good\.gguf"):
        load_model(tmp_path, gguf_file="absent.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    with pytest.raises(DyntsError, match=r"bad\.gguf is not a GGUF file"):
        load_model(tmp_path, gguf_file="bad.gguf")
    with pytest.raises(DyntsError, match=r"good\.gguf"):
        load_model(tmp_path, gguf_file="good.gguf")


def test_dtypes_by_name() -> None:
    assert parse_dtype("float16") is torch.float16
    for name in ("float7", "int8", "nn"):
        with pytest.raises(DyntsError, match=f"'{name}'"):
            parse_dtype(name)
