"""The predictor and its checkpoints."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from dynts.chat.markers import ThinkMarkers
from dynts.errors import DyntsError
from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.predictor.model import product_dtype
from tiny_traces import build_model

CONFIG = PredictorConfig(hidden_size=8, base_model="org/base", think_start=[5], think_end=[6, 7])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    ImportancePredictor(CONFIG).save_pretrained(tmp_path / "predictor")
    return tmp_path / "predictor"


@pytest.mark.quick
def test_the_network_is_that_of_the_paper() -> None:
    predictor = ImportancePredictor(CONFIG)
    assert [tuple(weight.shape) for weight in predictor.parameters()] == [(16, 8), (4, 16), (1, 4)]
    hidden = torch.randn(2, 3, 8)
    first, second, third = predictor.parameters()
    softplus = torch.nn.functional.softplus
    expected = softplus(softplus(softplus(hidden @ first.T) @ second.T) @ third.T)[..., 0]
    torch.testing.assert_close(predictor(hidden), expected)
    assert (predictor(hidden) >= 0).all()


def test_scores_are_float32_for_any_dtype() -> None:
    predictor = ImportancePredictor(CONFIG)
    assert predictor(torch.randn(4, 8, dtype=torch.bfloat16)).dtype == torch.float32
    assert predictor.to(torch.bfloat16)(torch.randn(4, 8)).dtype == torch.float32


@torch.no_grad()
def test_products_take_the_half_precision_of_a_model_on_a_gpu_only() -> None:
    cuda, cpu, half, single = torch.device("cuda", 1), torch.device("cpu"), torch.bfloat16, torch.float32
    assert product_dtype(cuda, half, single) == half
    assert product_dtype(cuda, torch.float16, half) == torch.float16
    assert product_dtype(cuda, single, single) == single
    assert product_dtype(cpu, half, single) == single
    with torch.enable_grad():
        assert product_dtype(cuda, half, single) == single


@torch.no_grad()
def test_scores_of_products_in_half_precision_are_near_and_still_tell_tokens_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    predictor = ImportancePredictor(replace(CONFIG, hidden_size=64))
    hidden = torch.randn(2000, 64, dtype=torch.bfloat16)
    first, second, third = (weight.double() for weight in predictor.parameters())
    softplus = torch.nn.functional.softplus
    expected = softplus(softplus(softplus(hidden.double() @ first.T) @ second.T) @ third.T)[..., 0]
    monkeypatch.setattr("dynts.predictor.model.product_dtype", lambda *_: torch.bfloat16)
    scores = predictor(hidden)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-2, atol=0)
    assert len(scores.unique()) > 1000
    assert len(scores.bfloat16().unique()) < 200


@pytest.mark.parametrize("size", [0, 1, -8, 2.5, True])
def test_a_hidden_size_that_cannot_be_is_refused(size: object) -> None:
    with pytest.raises(DyntsError, match="hidden_size"):
        ImportancePredictor(PredictorConfig(hidden_size=size))


@pytest.mark.quick
def test_saving_and_loading_gives_the_same_scores_and_prints_nothing(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = ImportancePredictor.from_pretrained(saved)
    torch.manual_seed(0)  # as the fixture did
    original, hidden = ImportancePredictor(CONFIG), torch.randn(5, 8)
    torch.testing.assert_close(loaded(hidden), original(hidden), rtol=0, atol=0)
    loaded.save_pretrained(saved.parent / "again")
    again = ImportancePredictor.from_pretrained(saved.parent / "again")
    torch.testing.assert_close(again(hidden), loaded(hidden), rtol=0, atol=0)
    assert again.config == CONFIG
    assert again.config.markers == ThinkMarkers((5,), (6, 7))
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert capfd.readouterr().out == ""


def test_a_config_of_another_version_is_read(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["transform"], config["metrics"]
    config |= {"temperature": 3, "dynts_version": "9.0"}
    (saved / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        loaded = ImportancePredictor.from_pretrained(saved)
    assert loaded.config.transform == "rank"
    assert "temperature" in caplog.text
    assert "9.0" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", None, r"config\.json does not exist"),
        ("config.json", b'{"hidden_size": ', r"config\.json is damaged"),
        ("config.json", b"[8]", r"config\.json is damaged .*expected a JSON object, got list"),
        ("config.json", b"{}", "hidden_size"),
        ("config.json", b'{"hidden_size": 16}', r"model\.safetensors does not fit config\.json"),
        ("model.safetensors", None, r"model\.safetensors does not exist"),
        ("model.safetensors", b"", r"model\.safetensors is damaged"),
        ("model.safetensors", "truncated", r"model\.safetensors is damaged"),
    ],
)
def test_damaged_checkpoints_are_named(saved: Path, file: str, content: bytes | str | None, problem: str) -> None:
    path = saved / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10] if isinstance(content, str) else content)
    with pytest.raises(DyntsError, match=problem):
        ImportancePredictor.from_pretrained(saved)


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(DyntsError, match="does not fit"):
        ImportancePredictor.from_pretrained(saved)


@pytest.mark.parametrize("name", ["no such/folder/at all", "nobody/nothing"])
def test_a_name_that_is_nothing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DyntsError, match="neither a folder nor a Hub repository"):
        ImportancePredictor.from_pretrained(name, local_files_only=True)


def test_a_repository_of_any_name_is_loaded_from_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object, object]] = []

    def download(repo_id: str, *, revision: object, token: object, **rest: object) -> str:
        asked.append((repo_id, revision, token))
        return str(saved)

    monkeypatch.setattr("dynts.predictor.model.snapshot_download", download)
    loaded = ImportancePredictor.from_pretrained("anyone/any-predictor", revision="v2", token="secret")
    assert loaded.config == CONFIG
    assert asked == [("anyone/any-predictor", "v2", "secret")]


def test_push_to_hub_uploads_weights_config_and_card(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, str] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> "Api":
            self.repo_id = repo_id
            return self

        def upload_folder(self, folder_path: Path, **options: object) -> str:
            uploaded.update({path.name: path.read_text(errors="replace") for path in Path(folder_path).iterdir()})
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    ImportancePredictor(CONFIG).push_to_hub("anyone/any-predictor")
    assert set(uploaded) == {"README.md", "config.json", "model.safetensors"}
    assert "library_name: dynts" in uploaded["README.md"]
    assert "org/base" in uploaded["README.md"]


def test_the_card_shows_the_metrics_beside_the_trivial_ones() -> None:
    metrics = {"predictor": {"kendall_tau": 0.6155}, "token_identity": {"kendall_tau": 0.487}}
    text = str(ImportancePredictor(PredictorConfig(hidden_size=8, metrics=metrics)).generate_model_card())
    assert "| predictor | 0.615 |" in text or "| predictor | 0.616 |" in text
    assert "| token identity | 0.487 |" in text


@pytest.mark.quick
def test_the_base_model_is_recognised_in_any_dtype_and_fine_tuned(any_model: PreTrainedModel) -> None:
    predictor = ImportancePredictor.for_model(any_model, label="future")
    assert predictor.config.hidden_size == any_model.config.hidden_size
    assert predictor.config.label == "future"
    predictor.check_model(any_model)
    architecture = any_model.config.model_type.removesuffix("_text")
    copy = build_model(architecture)
    copy.load_state_dict(any_model.state_dict())
    predictor.check_model(copy.to(torch.bfloat16))
    with torch.no_grad():
        weight = copy.get_input_embeddings().weight
        weight += 0.1 * weight.std() * torch.randn_like(weight)
    predictor.check_model(copy)
    copy.resize_token_embeddings(310)
    predictor.check_model(copy)


def test_another_model_is_refused(model: PreTrainedModel) -> None:
    predictor = ImportancePredictor.for_model(model)
    with pytest.raises(DyntsError, match="another model of the same shape"):
        predictor.check_model(build_model("llama", seed=1))
    with pytest.raises(DyntsError, match="model_type 'llama', this model has 'qwen2'"):
        predictor.check_model(build_model("qwen2"))
    with pytest.raises(DyntsError, match="hidden states of size 8, this model's have size 32"):
        ImportancePredictor(CONFIG).check_model(model)


def test_weights_without_data_skip_the_sample(model: PreTrainedModel) -> None:
    predictor = ImportancePredictor.for_model(model)
    predictor.check_model(build_model("llama", seed=1).to("meta"))
    on_meta = ImportancePredictor.for_model(build_model("llama").to("meta"))
    assert "embedding_sample" not in on_meta.config.fingerprint
    on_meta.check_model(model)
