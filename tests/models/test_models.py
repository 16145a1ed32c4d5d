"""Loading base models, and what is said when that fails."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dynts.config import ModelSource
from dynts.errors import DyntsError
from dynts.models import load_config, load_model, parse_dtype
from dynts.models.threads import NARROW, fit_threads
from dynts.tiny import load_tiny_model
from tiny import tiny_model


@pytest.mark.quick
def test_a_folder_is_loaded_and_stdout_stays_clean(
    saved_model: Path, model: PreTrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded, tokenizer = load_model(ModelSource(str(saved_model), dtype="bfloat16", attention="eager"))
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
        load_model(ModelSource(str(saved_model), dtype="int8"))
    weights = saved_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DyntsError, match="could not load the model"):
        load_model(saved_model)


def test_a_missing_tokenizer_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(DyntsError, match=r"tokenizer of .*bare"):
        load_model(tmp_path / "bare")


def test_a_gguf_file_without_its_option_is_named(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").touch()
    for load in (load_model, load_config):
        with pytest.raises(DyntsError, match=r"holds a GGUF file and no config\.json: name it, as in --gguf-file"):
            load(tmp_path)


def test_unreadable_gguf_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(b"GGUF")
    with pytest.raises(DyntsError, match=r"absent\.gguf does not exist; GGUF files in .*: good\.gguf"):
        load_model(ModelSource(str(tmp_path), gguf_file="absent.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"<html>")
    with pytest.raises(DyntsError, match=r"bad\.gguf is not a GGUF file"):
        load_model(ModelSource(str(tmp_path), gguf_file="bad.gguf"))
    with pytest.raises(DyntsError, match=r"good\.gguf"):
        load_model(ModelSource(str(tmp_path), gguf_file="good.gguf"))


def test_dtypes_by_name() -> None:
    assert parse_dtype("float16") is torch.float16
    for name in ("float7", "int8", "nn"):
        with pytest.raises(DyntsError, match=f"'{name}'"):
            parse_dtype(name)


@pytest.mark.quick
def test_missing_weights_are_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    # several shards and an index, as large models come
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(load_model(tmp_path)[0].state_dict(), dict(model.state_dict()))
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".layers.1." not in name}
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    lacking = len(model.state_dict()) - len(weights)
    with pytest.raises(DyntsError, match=rf"lacks model\.layers\.1\.\S+, .* and {lacking - 3} more"):
        load_model(tmp_path)


def test_weights_of_another_shape_are_refused(saved_model: Path) -> None:
    config = json.loads((saved_model / "config.json").read_text())
    (saved_model / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    with pytest.raises(
        DyntsError, match=r"other shapes .*model\.layers\.0\.mlp\.down_proj\.weight \(\[\d+, \d+\], not \[\d+, 8\]\)"
    ):
        load_model(saved_model)


def test_tied_embeddings_and_unsaved_buffers_are_not_missing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tied = tiny_model("gemma3", vocab_size=len(tokenizer), tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")).isdisjoint({"lm_head.weight", *dict(loaded.named_buffers())})
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, tied(ids).logits)


@pytest.mark.parametrize(
    ("owner", "attribute"), [("tokenizer", "pad_token"), ("generation configuration", "eos_token_id")]
)
def test_special_tokens_without_an_embedding_are_refused(
    saved_model: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, owner: str, attribute: str
) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if owner == "tokenizer":
        changed = copy.deepcopy(tokenizer)
        changed.add_tokens([f"<{index}>" for index in range(len(tokenizer), rows)])
        changed.add_special_tokens({attribute: "<added later>"})
        changed.save_pretrained(saved_model)
    else:
        (saved_model / "generation_config.json").write_text(json.dumps({attribute: [2, rows]}))
    with pytest.raises(DyntsError, match=rf"the {owner}'s {attribute} of .* is {rows}, .* 0 to {rows - 1} only"):
        load_model(saved_model)


@pytest.mark.parametrize(("settings", "expected"), [({}, [1]), ({"OMP_NUM_THREADS": "2"}, [])], ids=str)
def test_a_narrow_model_computes_with_one_thread_unless_told_otherwise(
    settings: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", found.append)
    load_tiny_model()
    assert found == expected


def test_a_wide_model_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.set_num_threads", lambda _: pytest.fail("changed"))
    fit_threads(NARROW + 1)
