"""TriAttention against its formula, its statistics against queries as the layers project them, and its refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import dynts
from against_reference import CONFIG, check_row
from decoding import converse, random_tokens
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import TriAttention
from dynts.methods.calibration import Calibration
from dynts.predictor.fingerprint import fingerprint
from dynts.training.calibrate import calibrate
from reference import QueryStatistics, Turn, reference_generate
from tiny import tiny_model

pytestmark = pytest.mark.quick

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}


@pytest.fixture
def known(tmp_path: Path) -> tuple[Path, Calibration]:
    """Statistics that nobody has counted, of a tiny Llama, and their file."""
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(2, 4, 4, generator=generator, dtype=torch.complex64)
    length = mean.abs() + torch.rand(2, 4, 4, generator=generator)
    frequencies = 10000.0 ** -(torch.arange(4) / 4)
    model = tiny_model("llama")
    made = Calibration(mean, length, frequencies, 1.25, "tiny", fingerprint(model))
    made.save(tmp_path / "queries.safetensors")
    return tmp_path / "queries.safetensors", made


@pytest.mark.parametrize("settings", [{}, {"granularity": "native"}, {"protect_question": False}], ids=str)
def test_what_is_kept_equals_the_reference(known: tuple[Path, Calibration], settings: dict[str, Any]) -> None:
    path, made = known
    model = tiny_model("llama")
    rows = [random_tokens(4, 6), random_tokens(11, 7)]
    talk = converse(model, [(rows, 40)], TriAttention(calibration=path, **settings), CONFIG)
    statistics = QueryStatistics(made.mean, made.length, made.frequencies, made.scaling)
    for row, prompt in enumerate(rows):
        run = reference_generate(
            model,
            [Turn(prompt, 40)],
            method="triattention",
            budget=CONFIG.budget,
            local_window=CONFIG.local_window,
            retention_ratio=CONFIG.retention_ratio,
            forced=[talk.tokens[0][row]],
            statistics=statistics,
            **{"protect_question": True, **settings},
        )
        assert len(run.compactions) >= 2
        check_row(talk, row, run)


def projected(model: PreTrainedModel, text: list[int]) -> list[Tensor]:
    """The queries of a Llama before its rotary embedding, of each layer [heads, tokens, head size]."""
    found: list[Tensor] = []
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: found.append(out[0].unflatten(-1, (4, 8))))
        for layer in model.get_decoder().layers
    ]
    with torch.no_grad():
        model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return [each.transpose(0, 1).double() for each in found]


@pytest.mark.parametrize("settings", [{}, {"rope_parameters": YARN}], ids=["plain", "yarn"])
def test_statistics_are_of_the_queries_before_the_rotary_embedding(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama", **settings)
    texts = [random_tokens(40, 1), random_tokens(70, 2)]
    calibrate(model, texts).save(tmp_path / "x")
    found = Calibration.load(tmp_path / "x")
    assert (found.scaling != 1.0) == bool(settings)
    for layer in range(2):
        queries = torch.cat([projected(model, text)[layer] for text in texts], dim=1)
        pairs = torch.complex(queries[..., :4], queries[..., 4:])
        torch.testing.assert_close(found.mean[layer].to(torch.complex128), pairs.mean(dim=1), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.length[layer].double(), pairs.abs().mean(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("cohere", {}, "do not turn queries and keys as Llama does"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "layers 1 of SmolLM3ForCausalLM do not turn"),
        ("stablelm", {"partial_rotary_factor": 0.5}, "4 of the 8 dimensions"),
        ("gpt2", {}, "not one rotary embedding"),
    ],
    ids=["interleaved", "none in a layer", "partial", "positions learned"],
)
def test_other_rotary_embeddings_are_refused(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        calibrate(tiny_model_of(kind, **settings), [random_tokens(40, 1)])


def tiny_model_of(kind: str, **settings: Any) -> PreTrainedModel:
    """A random model of an architecture that `tiny_model` does not know."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tiny import COMMON

    config = AutoConfig.for_model(kind, **{**COMMON, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def test_what_is_no_calibration_of_the_model_is_refused(known: tuple[Path, Calibration], tmp_path: Path) -> None:
    path, made = known
    with pytest.raises(DyntsError, match="the calibration was made for a model with model_type 'llama'"):
        dynts.compress(tiny_model("qwen2"), TriAttention(calibration=path), CONFIG)
    replace(made, mean=made.mean[:1], length=made.length[:1]).save(tmp_path / "less")
    model = tiny_model("llama")
    with pytest.raises(UnsupportedError, match="1 layers of 4 query heads"):
        dynts.compress(model, TriAttention(calibration=tmp_path / "less"), CONFIG)
    (tmp_path / "text").write_text("no tensors")
    replace(made, frequencies=made.frequencies[1:]).save(tmp_path / "fewer pairs")
    for other in (tmp_path / "missing", tmp_path / "text", tmp_path / "fewer pairs"):
        with pytest.raises(DyntsError, match=r"no calibration of triattention .*dynts calibrate"):
            dynts.compress(model, TriAttention(calibration=other), CONFIG)
    with pytest.raises(DyntsError, match="TriAttention needs calibration="):
        TriAttention()
    with pytest.raises(DyntsError, match="at least one trace"):
        calibrate(model, [])
