"""What the plugin refuses, before an engine starts."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_engines import RUNNERS, budget, needs_vllm

from dynts.config import CompressionConfig
from dynts.engines.vllm import refusals
from dynts.engines.vllm.refusals import check_config, check_kv_cache, check_request
from dynts.engines.vllm.settings import LOGGER
from dynts.errors import DyntsError, UnsupportedError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor

pytestmark = needs_vllm
CONFIG = CompressionConfig(budget=350, local_window=40, retention_ratio=0.4)


@pytest.fixture(scope="module")
def folder(random_model: Callable[[str], Path]) -> Path:
    return random_model("llama")


def configure(folder: Path, additional: dict[str, Any], **arguments: Any) -> Any:
    from vllm import EngineArgs

    usual = {"skip_tokenizer_init": True, "dtype": "float32", "block_size": 32}
    return EngineArgs(model=str(folder), additional_config=additional, **{**usual, **arguments}).create_engine_config()


def test_scheduler_and_worker_are_chosen_and_settings_resolved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = configure(folder, budget(CONFIG, Path("predictor")))
    assert config.scheduler_config.scheduler_cls == "dynts.engines.vllm.scheduler.BudgetScheduler"
    assert config.parallel_config.worker_cls == "dynts.engines.vllm.cpu.BudgetCPUWorker"
    assert config.additional_config["dynts"]["predictor"] == str(folder / "predictor")
    plain = configure(folder, {})
    assert plain.scheduler_config.scheduler_cls is None
    assert plain.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"
    monkeypatch.setenv("DYNTS_PREDICTOR", str(folder / "predictor"))
    assert configure(folder, {}).scheduler_config.scheduler_cls == "dynts.engines.vllm.scheduler.BudgetScheduler"
    assert configure(folder, {"dynts": None}).scheduler_config.scheduler_cls is None


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_line_of_vllms_log_says_which_model_runner_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runner: str
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(runner == "v2")))
    # vLLM's own loggers do not hand on what they show
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        configure(folder, budget(CONFIG, folder / "predictor"))
    assert f"budget of {CONFIG.budget} tokens" in caplog.text
    assert f"vLLM's {runner.upper()} model runner" in caplog.text


def test_a_predictor_of_another_model_and_a_wrong_setting(folder: Path, tmp_path: Path) -> None:
    from decoding import random_predictor

    random_predictor(32).save_pretrained(tmp_path)
    with pytest.raises(DyntsError, match="hidden states of size 32, this model's have size 128"):
        configure(folder, budget(CONFIG, tmp_path))
    with pytest.raises(DyntsError, match=r"one score for all layers and heads.*granularity 'shared'"):
        configure(folder, budget(CONFIG, folder / "predictor", granularity="native"))
    more = PredictorConfig(hidden_size=128, layers=3, kv_heads=2)
    ImportancePredictor(more).save_pretrained(tmp_path / "more")
    with pytest.raises(DyntsError, match="for 3 layers of 2 KV heads, this model has 2 full-attention layers of 2"):
        configure(folder, budget(CONFIG, tmp_path / "more", granularity="native"))
    with pytest.raises(UnsupportedError, match=r"dynts-all scores the question.*use --no-enable-prefix-caching"):
        configure(folder, budget(CONFIG, folder / "predictor", method="dynts-all"))
    configure(folder, budget(CONFIG, folder / "predictor", method="dynts-all"), enable_prefix_caching=False)
    random_predictor(128, all_tokens=False).save_pretrained(tmp_path / "thinking")
    with pytest.raises(DyntsError, match="was trained on thinking tokens only"):
        configure(folder, budget(CONFIG, tmp_path / "thinking", method="dynts-all"), enable_prefix_caching=False)
    with pytest.raises(DyntsError, match="neither a folder nor a Hub repository"):
        configure(folder, budget(CONFIG, tmp_path / "nothing"))
    with pytest.raises(DyntsError, match="no setting bugdet"):
        configure(folder, {"dynts": {"predictor": "p", "bugdet": 3}})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism: use --pipeline-parallel-size 1"),
        ("parallel_config.decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config.use_ubatching", True, "dual batch overlap"),
        ("speculative_config", object(), "speculative decoding: drop --speculative-config"),
        ("kv_transfer_config", object(), "KV connectors: drop --kv-transfer-config"),
        ("ec_transfer_config", object(), "EC connectors"),
        ("lora_config", object(), "LoRA adapters: merge one"),
        ("weight_transfer_config", object(), "weights that change"),
        ("aux_output_config.enabled", True, "the experts that each token took"),
        ("model_config.enable_sleep_mode", True, "sleep mode"),
        ("model_config.is_diffusion", True, "diffusion models"),
        ("cache_config.cache_dtype", "fp8", r"a quantised KV cache \(fp8\): use --kv-cache-dtype auto"),
        ("cache_config.kv_sharing_fast_prefill", True, "layers that share keys and values"),
        ("model_config.enable_prompt_embeds", True, "prompts as embeddings"),
        ("model_config.use_mla", True, "MLA"),
        ("model_config.is_hybrid", True, "layers without attention"),
        ("model_config.is_encoder_decoder", True, "encoder-decoder"),
        ("model_config.is_multimodal_model", True, "multimodal"),
        ("model_config.runner_type", "pooling", "runner type pooling"),
        ("scheduler_config.scheduler_cls", "my.Scheduler", r"another scheduler \(my\.Scheduler\)"),
    ],
)
def test_configurations(place: str, value: object, message: str) -> None:
    config = SimpleNamespace(
        use_v2_model_runner=False,
        speculative_config=None,
        kv_transfer_config=None,
        ec_transfer_config=None,
        lora_config=None,
        weight_transfer_config=None,
        aux_output_config=SimpleNamespace(enabled=False),
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            use_ubatching=False,
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(
            enable_prompt_embeds=False,
            enable_sleep_mode=False,
            is_diffusion=False,
            use_mla=False,
            is_hybrid=False,
            is_attention_free=False,
            is_encoder_decoder=False,
            is_multimodal_model=False,
            runner_type="generate",
        ),
        scheduler_config=SimpleNamespace(scheduler_cls=None),
    )
    check_config(config)
    changed = copy.deepcopy(config)
    *owners, name = place.split(".")
    owner = changed
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, value)
    with pytest.raises(UnsupportedError, match=message):
        check_config(changed)


def test_real_configurations_have_what_is_looked_at(folder: Path) -> None:
    check_config(configure(folder, {}))
    with pytest.raises(UnsupportedError, match="pipeline parallelism"):
        configure(folder, budget(CONFIG, folder / "predictor"), pipeline_parallel_size=2)


@pytest.mark.parametrize("v2", [False, True], ids=["V1", "V2"])
def test_other_versions_and_changed_methods(v2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    refusals.check_vllm(vllm.__version__, v2)
    with pytest.raises(UnsupportedError, match=r"knows vLLM 0\.32 and 0\.33, this is 0\.34\.1: install vllm==0\.33"):
        refusals.check_vllm("0.34.1", v2)
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

    monkeypatch.setattr(RunnerV1 if v2 else RunnerV2, "sample_tokens", None)
    refusals.check_vllm(vllm.__version__, v2)  # the other runner does not count
    monkeypatch.setattr(KVCacheManager, "free", lambda self, request, later: None)
    with pytest.raises(UnsupportedError, match=r"KVCacheManager\.free .* takes \(self request later\)"):
        refusals.check_vllm(vllm.__version__, v2)
    monkeypatch.undo()
    monkeypatch.delattr(RunnerV2 if v2 else RunnerV1, "sample_tokens")
    with pytest.raises(UnsupportedError, match="no such function"):
        refusals.check_vllm(vllm.__version__, v2)


def test_most_tokens_to_find_in_the_prefix_cache_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.33 passes them by position, 0.32 has no such argument."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    from dynts.engines.vllm.blocks import BudgetBlocks

    told: list[tuple[Any, ...]] = []

    def find(self: Any, *arguments: Any) -> tuple[Any, int, int]:
        told.append(arguments)
        return None, 0, 0

    monkeypatch.setattr(KVCacheManager, "get_computed_blocks", find)
    blocks = object.__new__(BudgetBlocks)
    blocks.coordinator = SimpleNamespace(single_type_managers=[SimpleNamespace(block_size=32)])
    request = SimpleNamespace(num_prompt_tokens=70)
    blocks.get_computed_blocks(request)
    blocks.get_computed_blocks(request, None)
    blocks.get_computed_blocks(request, 64)
    assert told == [(request,), (request, None), (request, 64)]


def test_kv_caches_of_other_layers() -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

    from dynts.engines.vllm.blocks import BudgetSpec, budget_specs

    shape = {"block_size": 32, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}

    def groups(*specs: Any) -> Any:
        return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])

    sliding, latent = SlidingWindowSpec(**shape, sliding_window=64), MLAAttentionSpec(**{**shape, "num_kv_heads": 1})
    found = budget_specs({"full": FullAttentionSpec(**shape), "sliding": sliding, "latent": latent})
    assert found == {"full": BudgetSpec(**shape), "sliding": sliding, "latent": latent}
    full = found["full"]
    assert type(full.merge([full, full])) is BudgetSpec
    check_kv_cache(groups(full))
    others = (sliding,), (latent,), (full, sliding), (full, full), (BudgetSpec(**shape, sliding_window=64),), ()
    for specs in others:
        with pytest.raises(UnsupportedError, match="layers all have full attention"):
            check_kv_cache(groups(*specs))


def test_requests() -> None:
    def request(**changes: Any) -> Any:
        return SimpleNamespace(**{"prompt_token_ids": [8] * 200, "prompt_embeds": None, "resumable": False, **changes})

    check_request(request(), CONFIG)
    with pytest.raises(UnsupportedError, match="not of embeddings"):
        check_request(request(prompt_token_ids=None), CONFIG)
    with pytest.raises(UnsupportedError, match="streamed in"):
        check_request(request(resumable=True), CONFIG)
    with pytest.raises(DyntsError, match="use a budget of at least"):
        check_request(request(prompt_token_ids=[8] * 320), CONFIG)
