"""What the plugin refuses, before a server of SGLang starts and before a request does."""

import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sglang_engines import needs_sglang
from transformers import AutoConfig

from decoding import random_predictor
from dynts.config import CompressionConfig
from dynts.engines.settings import PluginSettings
from dynts.engines.sglang import refusals
from dynts.engines.sglang.handshake import READY, REFUSED, guard_start, pass_on
from dynts.engines.sglang.refusals import check_request, check_server_args, check_settings, guard_request, guard_server
from dynts.errors import DyntsError, UnsupportedError
from dynts.predictor.config import PredictorConfig
from dynts.predictor.fingerprint import fingerprint
from dynts.predictor.model import ImportancePredictor
from tiny import COMMON, tiny_model

pytestmark = needs_sglang
CONFIG = CompressionConfig(budget=350, local_window=40, retention_ratio=0.4)
HIDDEN = COMMON["hidden_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    random_predictor(HIDDEN).save_pretrained(folder / "predictor")
    random_predictor(HIDDEN, native=True).save_pretrained(folder / "native")
    return folder


@pytest.fixture(scope="module")
def resolve(folder: Path) -> Callable[..., Any]:
    from sglang.srt.server_args import ServerArgs

    def resolve(model: Path = folder, **given: Any) -> Any:
        """SGLang's settings for a CPU, as its own checks see them."""
        usual = {
            "device": "cpu",
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "dtype": "float32",
        }
        args = ServerArgs(model_path=str(model), **{**usual, "skip_tokenizer_init": True, **given})
        args.resolve_once()
        return args

    return resolve


def settings(folder: Path, **given: Any) -> PluginSettings:
    return PluginSettings(str(folder), CONFIG.budget, CONFIG.local_window, CONFIG.retention_ratio, **given)


def test_other_versions_and_changed_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    import sglang
    from sglang.srt.managers import scheduler
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache import common

    refusals.check_sglang(sglang.__version__)
    with pytest.raises(UnsupportedError, match=r"knows SGLang 0\.5\.23, this is 0\.5\.24: install sglang==0\.5\.23"):
        refusals.check_sglang("0.5.24")
    # the plugin's class has taken the place of SGLang's, which must still be what it was
    known = scheduler.Scheduler
    takes_its_place = type("BudgetScheduler", (known,), {"get_prefill_adder_class": lambda self, *others: None})
    takes_its_place.__module__ = "dynts.engines.sglang.scheduler"
    monkeypatch.setattr(scheduler, "Scheduler", takes_its_place)
    refusals.check_sglang(sglang.__version__)
    monkeypatch.setattr(known, "get_prefill_adder_class", lambda self, batch: None)
    with pytest.raises(UnsupportedError, match=r"get_prefill_adder_class .* takes \(self batch\)"):
        refusals.check_sglang(sglang.__version__)
    monkeypatch.undo()
    monkeypatch.setattr(common, "release_kv_cache", lambda req, tree_cache: None)
    with pytest.raises(UnsupportedError, match=r"release_kv_cache .* takes \(req tree_cache\)"):
        refusals.check_sglang(sglang.__version__)
    monkeypatch.undo()
    monkeypatch.delattr(Req, "reset_for_retract")
    with pytest.raises(UnsupportedError, match="no such function"):
        refusals.check_sglang(sglang.__version__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_mixed_chunk": True}, "prompts and decode steps in one batch: drop --enable-mixed-chunk; or unset"),
        ({"is_embedding": True}, "embedding and reward models: drop --is-embedding"),
        ({"enable_hierarchical_cache": True}, "hierarchical KV caches: drop --enable-hierarchical-cache"),
        ({"enable_return_routed_experts": True}, "the experts that each token took"),
        ({"use_ray": True}, "which load no plugins: drop --use-ray"),
        ({"device": "npu"}, "--device npu: use cuda or cpu"),
        # what SM100 has by default
        ({"attention_backend": "trtllm_mha", "page_size": 64}, "--attention-backend trtllm_mha: use flashinfer, fa3"),
        ({"decode_attention_backend": "flashmla"}, "--attention-backend flashmla"),
        ({"page_size": 16}, "pages of 16 tokens: use --page-size 1"),
        ({"kv_cache_dtype": "nvfp4"}, "--kv-cache-dtype nvfp4: use auto"),
        ({"speculative_algorithm": "NGRAM"}, "speculative decoding: drop --speculative-algorithm"),
        ({"decoupled_spec_role": "verifier"}, "drop --decoupled-spec-role"),
        ({"pp_size": 2}, "pipeline parallelism: use --pp-size 1"),
        ({"dcp_size": 2}, "context parallelism"),
        ({"attn_cp_size": 2}, "context parallelism"),
        ({"attn_dp_size": 2}, "data-parallel attention: use --attn-dp-size 1"),
        ({"elastic_ep_backend": "nixl"}, "elastic expert parallelism"),
        ({"nnodes": 2}, "several nodes.*use --nnodes 1"),
        ({"tokenizer_worker_num": 2}, "use --tokenizer-worker-num 1"),
        ({"disaggregation_mode": "decode"}, "drop --disaggregation-mode"),
        ({"radix_cache_backend": "mine"}, "drop --radix-cache-backend"),
        ({"lora_paths": ["adapter"]}, "LoRA adapters: merge one"),
        ({"return_hidden_states_mode": "full"}, "hidden states in answers"),
        ({"dllm_algorithm": "LowConfidence"}, "diffusion models"),
        ({"kv_canary": "log"}, "use --kv-canary none"),
        ({"startup_weight_load_mode": "overlap"}, "use --startup-weight-load-mode serial"),
    ],
)
def test_server_settings(resolve: Callable[..., Any], given: dict[str, Any], message: str) -> None:
    from sglang.srt.arg_groups.overrides import declare_resolution

    args = resolve()
    check_server_args(args)
    declare_resolution(args, "as SGLang resolves them", **given)  # refuses what is no setting of SGLang's
    with pytest.raises(UnsupportedError, match=message):
        check_server_args(args)


def test_settings_that_the_plugin_supports(resolve: Callable[..., Any]) -> None:
    for given in (
        {"tp_size": 2, "dp_size": 2, "disable_radix_cache": True, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 16, "schedule_policy": "lpm", "kv_cache_dtype": "fp8_e5m2"},
        {"enable_priority_scheduling": True},
        {"strip_thinking_cache": True, "retraction_policy": "length", "stream_interval": 4},
    ):
        args = resolve(**given)
        args.check_server_args()
        check_server_args(args)


def test_every_flag_is_one_of_sglangs_and_off_by_default(resolve: Callable[..., Any]) -> None:
    args = resolve()
    assert not [name for name in refusals._FLAGS if getattr(args, name)]


def test_the_server_in_rust(resolve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    with pytest.raises(UnsupportedError, match="unset SGLANG_RUST_SERVER"):
        check_server_args(resolve())


@pytest.mark.parametrize(
    ("model_type", "architecture", "changes", "message"),
    [
        ("gemma3_text", "Gemma3ForCausalLM", {}, "full attention in 1 of 6 layers"),
        ("mistral", "MistralForCausalLM", {"sliding_window": 64}, "every layer of this model uses sliding-window"),
        ("gpt_oss", "GptOssForCausalLM", {}, "sliding windows"),
        ("deepseek_v3", "DeepseekV3ForCausalLM", {}, "MLA: use a model with ordinary attention"),
        ("qwen3_next", "Qwen3NextForCausalLM", {}, "layers without attention"),
        ("mamba2", "Mamba2ForCausalLM", {}, "layers without attention"),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", {}, "multimodal models"),
        ("whisper", "WhisperForConditionalGeneration", {}, "encoder-decoder models"),
        ("qwen2", "Qwen2ForRewardModel", {}, "embedding and reward models"),
    ],
)
def test_models(
    resolve: Callable[..., Any],
    tmp_path: Path,
    model_type: str,
    architecture: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    config = AutoConfig.for_model(model_type, num_hidden_layers=6, architectures=[architecture], **changes)
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=message):
        refusals.check_model(ModelConfig(str(tmp_path)))


def test_a_predictor_of_another_model_and_a_wrong_setting(
    folder: Path, resolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = resolve()
    monkeypatch.chdir(folder)
    found = check_settings(settings(Path("predictor")), args)
    assert found == settings(folder / "predictor")  # other processes may run elsewhere
    with pytest.raises(DyntsError, match="neither a folder nor a Hub repository"):
        check_settings(settings(tmp_path / "nothing"), args)
    random_predictor(48).save_pretrained(tmp_path)
    with pytest.raises(DyntsError, match=f"hidden states of size 48, this model's have size {HIDDEN}"):
        check_settings(settings(tmp_path), args)
    with pytest.raises(DyntsError, match=r"one score for all layers and heads.*granularity 'shared'"):
        check_settings(settings(folder / "predictor", granularity="native"), args)
    random_predictor(HIDDEN, native=(3, 2)).save_pretrained(tmp_path)
    with pytest.raises(DyntsError, match="for 3 layers of 2 KV heads, this model has 2 full-attention layers of 2"):
        check_settings(settings(tmp_path, granularity="native"), args)
    with pytest.raises(UnsupportedError, match=r"method dynts-all with SGLang.*use method dynts"):
        check_settings(settings(folder / "predictor", method="dynts-all"), args)


def test_think_markers_need_the_tokenizer_and_are_known(
    folder: Path, resolve: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    marked = settings(folder / "predictor", think_start="<hm>")
    with pytest.raises(DyntsError, match="drop skip_tokenizer_init"):
        check_settings(marked, resolve())
    with pytest.raises(DyntsError, match="<hm>"):
        check_settings(marked, resolve(tmp_path, skip_tokenizer_init=False))
    check_settings(settings(folder / "predictor"), resolve(tmp_path, skip_tokenizer_init=False))


def generate(prompt: list[int], **given: Any) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    request = GenerateReqInput(input_ids=prompt, **{"sampling_params": {"max_new_tokens": 9}, **given})
    request.normalize_batch_and_arguments()
    return request if request.is_single else request[0]


def test_a_pool_without_room_for_one_request(
    resolve: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings(folder / "predictor").to_environment().items():
        monkeypatch.setenv(name, value)
    guard_server(lambda args: None, resolve(max_total_tokens=352))
    with pytest.raises(UnsupportedError, match=r"cache of 351 tokens has no room.*budget of 350, which takes 352"):
        guard_server(lambda args: None, resolve(max_total_tokens=351))


def test_requests() -> None:
    def check(prompt: list[int] | None, **given: Any) -> None:
        check_request(generate([8] * 200, **given), prompt, CONFIG)

    check([8] * 200, sampling_params={"n": 2}, return_logprob=True, session_id="mine")
    with pytest.raises(UnsupportedError, match="prompts of embeddings"):
        check(None)
    with pytest.raises(UnsupportedError, match="prompts of embeddings"):
        check([8] * 200, positional_embed_overrides=object())
    with pytest.raises(UnsupportedError, match="sessions: send the whole prompt"):
        check([8] * 200, session_params={"id": "1"})
    with pytest.raises(UnsupportedError, match="beam search: drop beam_width"):
        check([8] * 200, sampling_params={"beam_width": 4})
    with pytest.raises(DyntsError, match=r"budget 350 is too small for a question of 320 tokens.*at least 363"):
        check([8] * 320)


def test_hooks_keep_each_engine_to_its_own_settings(
    folder: Path, resolve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that starts without settings runs as it is beside one with them, whatever is in the environment by
    then; what SGLang says itself comes first."""
    from sglang.srt.server_args import ServerArgs

    def ask(args: Any, prompt: list[int]) -> None:
        def validate(manager: Any, request: Any, prompt: list[int]) -> None:
            if not prompt:
                raise ValueError("SGLang's own")

        guard_request(validate, SimpleNamespace(server_args=args), generate([8]), prompt)

    plain, budgeted, refused = resolve(), resolve(), resolve(page_size=16)
    guard_server(ServerArgs.check_server_args, plain)
    for name, value in settings(folder / "predictor").to_environment().items():
        monkeypatch.setenv(name, value)
    guard_server(ServerArgs.check_server_args, budgeted)
    with pytest.raises(UnsupportedError, match="pages of 16 tokens"):
        guard_server(ServerArgs.check_server_args, refused)
    with pytest.raises(AssertionError, match="chunked_prefill_size must be divisible by page_size"):
        guard_server(ServerArgs.check_server_args, resolve(page_size=16, chunked_prefill_size=24))
    monkeypatch.setenv("DYNTS_BUGDET", "350")
    with pytest.raises(DyntsError, match="did you mean DYNTS_BUDGET"):
        guard_server(ServerArgs.check_server_args, resolve())
    for each in (plain, budgeted):
        ask(each, [8] * 200)
        with pytest.raises(ValueError, match="SGLang's own"):
            ask(each, [])
    ask(plain, [8] * 320)
    with pytest.raises(DyntsError, match="a question of 320 tokens"):
        ask(budgeted, [8] * 320)
    # they go with SGLang's settings to other processes
    assert refusals.settings_of(pickle.loads(pickle.dumps(budgeted))) == settings(folder / "predictor")
    assert refusals.settings_of(plain) is None


def test_what_a_scheduler_refuses_is_raised_where_it_was_started(
    folder: Path, resolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predictor of another model of the same shape, which only shows beside the weights: the scheduler's process does
    not end the one that started it."""
    from sglang.srt.entrypoints.engine import _wait_for_scheduler_ready
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.server_args import PortArgs, ServerArgs

    known = PredictorConfig(HIDDEN, fingerprint=fingerprint(tiny_model("llama", seed=1)))
    ImportancePredictor(known).save_pretrained(tmp_path)
    for name, value in settings(tmp_path).to_environment().items():
        monkeypatch.setenv(name, value)
    args = resolve(context_length=512, max_total_tokens=512, max_running_requests=2)
    guard_server(ServerArgs.check_server_args, args)
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=run_scheduler_process, args=(args, PortArgs.init_new(args), 0, 0, 0, None, there)
    )
    process.start()
    there.close()
    with pytest.raises(DyntsError, match="trained for another model of the same shape"):
        guard_start(_wait_for_scheduler_ready, [here], [process])
    process.join(30)
    assert process.exitcode in (1, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ([{READY: 350}, {READY: 350}], None),
        ([{READY: 350}, {}], "run without the budget"),
        ([{READY: 350}, {REFUSED: DyntsError("another model")}], "another model"),
    ],
)
@pytest.mark.parametrize("replicas", [False, True])
def test_schedulers_that_run_without_the_budget(
    told: list[dict[str, Any]], error: str | None, replicas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them, which a process of SGLang's has started that speaks for both where they are replicas."""
    from sglang.srt.entrypoints.engine import _wait_for_scheduler_ready
    from sglang.srt.managers.data_parallel_controller import DataParallelController

    monkeypatch.setenv("DYNTS_PREDICTOR", "predictor")
    usual = {"status": "ready", "max_total_num_tokens": 0, "max_req_input_len": 0}
    infos = [usual | info for info in told]
    if replicas:
        controller = object.__new__(DataParallelController)
        controller._scheduler_init_info_lock, controller._scheduler_init_infos = threading.Lock(), []
        controller._record_scheduler_init_infos(infos)
        infos = [usual | pass_on(DataParallelController.get_init_info, controller)]
    pipes = [multiprocessing.Pipe(duplex=False) for _ in infos]
    killed: list[bool] = []
    processes = [SimpleNamespace(kill=lambda: killed.append(True), is_alive=lambda: True) for _ in infos]
    for (_, there), info in zip(pipes, infos, strict=True):
        there.send(info)
    readers = [here for here, _ in pipes]
    if error is None:
        assert guard_start(_wait_for_scheduler_ready, readers, processes) == infos
        assert not killed
        return
    with pytest.raises((DyntsError, RuntimeError), match=error):
        guard_start(_wait_for_scheduler_ready, readers, processes)
    assert len(killed) == len(infos)
