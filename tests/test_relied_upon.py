"""What dynts relies on in transformers, torch, vLLM, SGLang and lm_eval beyond their documentation, each with the place
in src/dynts that does.

A failure after an upgrade says what has changed and where to look. vLLM's rows run in `make vllm`, SGLang's in `make
sglang`, and all others on the newest releases in `make newest`.
"""

import ast
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    StoppingCriteria,
    TextStreamer,
    cache_utils,
    masking_utils,
)
from transformers.generation import configuration_utils, streamers

import dynts
from decoding import random_tokens
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE, FixedRowsCache
from dynts.cache.layer import BudgetLayer, Occupancy
from dynts.cache.step import Contents, SlotColumns
from dynts.decode.recorded import _CAPTURING
from tiny import TINY_NAMES, tiny_model

pytestmark = pytest.mark.quick

PACKAGE = Path(dynts.__file__).parent
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "vllm", "sglang", "lm_eval")
HAS_VLLM = find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: `make vllm` runs these")
needs_sglang = pytest.mark.skipif(
    find_spec("sglang") is None, reason="SGLang is not installed: `make sglang` runs these"
)
needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed: `pip install 'dynts-kv[lm-eval]'`"
)
if HAS_VLLM:  # as in tests/engines/vllm_plugin: vLLM reads them when it is imported
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

NEEDS = {"vllm": needs_vllm, "sglang": needs_sglang, "lm_eval": needs_lm_eval}
PROMPT = torch.tensor([random_tokens(8, 1)])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}


@contextmanager
def relied_upon_by(*places: str) -> Iterator[None]:
    """Adds to a failure where to look."""
    for place in places:
        assert (PACKAGE / place).is_file(), f"{place} has moved: say where to"
    try:
        yield
    except BaseException as error:
        error.add_note(f"relied upon by {', '.join(f'src/dynts/{place}' for place in places)}")
        raise


def rows(table: dict[str, dict[str, str]]) -> list[Any]:
    """Parameters (place, name, value) of a table by place and name."""
    return [
        pytest.param(
            place,
            name,
            value,
            id=f"{place}-{name}",
            marks=[mark for engine, mark in NEEDS.items() if engine in name.split(".")[:3]],
        )
        for place, names in table.items()
        for name, value in names.items()
    ]


def find(name: str) -> Any:
    """What a dotted name stands for: a module, or something in one."""
    module, parts = name, []
    while True:
        try:
            return reduce(getattr, parts, import_module(module))
        except ModuleNotFoundError as error:
            if "." not in module or not f"{module}.".startswith(f"{error.name}."):
                raise
            module, _, part = module.rpartition(".")
            parts.insert(0, part)


# --- names that are imported, at the top of a file or when they are needed


SOURCES = {
    str(path.relative_to(PACKAGE)): list(ast.walk(ast.parse(path.read_text())))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported() -> dict[str, list[str]]:
    """Every name that dynts imports from these libraries, and the files that do, in the order of the files."""
    places = defaultdict(list)
    for place, nodes in SOURCES.items():
        for node in nodes:
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in LIBRARIES:
                    places[name].append(place)
    return places


@pytest.mark.parametrize(
    ("place", "name", "_"), rows({", ".join(places): {name: ""} for name, places in imported().items()})
)
def test_imported_names_are_there(place: str, name: str, _: str) -> None:
    with relied_upon_by(*place.split(", ")):
        find(name)


# --- parameters that calls name


CALLED = {
    "models/attention.py": {
        "transformers.AttentionInterface.register": "key value",
        "transformers.AttentionInterface.get_interface": "attn_implementation default",
        "transformers.AttentionMaskInterface.register": "key value",
        "transformers.PreTrainedModel.set_attn_implementation": "attn_implementation",
    },
    "models/shape.py": {"transformers.DynamicCache": "config"},
    "cache/cache.py": {"transformers.Cache": "layers"},
    "cache/layer.py": {"torch._dynamo.mark_static_address": "t"},
    "engines/vllm/offline.py": {
        "vllm.EngineArgs": "model revision tokenizer_revision dtype max_num_seqs enable_chunked_prefill "
        "additional_config",
        "vllm.LLMEngine.from_engine_args": "engine_args",
        "vllm.LLMEngine.add_request": "request_id prompt params",
        "vllm.LLMEngine.abort_request": "request_ids",
        "vllm.LLMEngine.get_tokenizer": "",
        "vllm.LLMEngine.step": "",
        "vllm.SamplingParams": "temperature top_p top_k max_tokens seed detokenize output_kind",
        "vllm.distributed.cleanup_dist_env_and_memory": "",
        "vllm.outputs.RequestOutput": "request_id outputs finished",
        "vllm.outputs.CompletionOutput": "token_ids finish_reason",
        "vllm.utils.torch_utils.kv_cache_dtype_str_to_dtype": "kv_cache_dtype model_config",
        "vllm.v1.engine.core_client.EngineCoreClient.shutdown": "timeout",
    },
    "engines/sglang/engine_process.py": {
        "sglang.srt.entrypoints.engine.Engine.async_generate": "input_ids sampling_params",
        "sglang.srt.entrypoints.engine.Engine.get_server_info": "",
        "sglang.srt.entrypoints.engine.Engine.shutdown": "",
    },
    "engines/sglang/offline.py": {
        "sglang.srt.server_args.ServerArgs": "model_path revision dtype max_running_requests "
        "enable_deterministic_inference",
        "sglang.srt.sampling.sampling_params.SamplingParams": "temperature top_p top_k max_new_tokens stop "
        "min_new_tokens sampling_seed",
    },
    "engines/sglang/reasoning.py": {
        "sglang.srt.parser.reasoning_parser.BaseReasoningFormatDetector": "think_start_token think_end_token "
        "reasoning_default continue_final_message previous_content",
    },
    "decode/answers.py": {"transformers.set_seed": "seed"},
    "decode/checkpoint.py": {
        "transformers.GenerationMixin._get_logits_processor": "generation_config input_ids_seq_length "
        "encoder_input_ids logits_processor device",
        "transformers.GenerationMixin._prepare_special_tokens": "generation_config kwargs_has_attention_mask device",
        "transformers.StopStringCriteria": "tokenizer stop_strings",
        "transformers.MinPLogitsWarper": "min_p",
        "transformers.TypicalLogitsWarper": "mass",
        "transformers.EpsilonLogitsWarper": "epsilon",
        "transformers.EtaLogitsWarper": "epsilon device",
    },
    "decode/compiled.py": {
        "torch.compile": "model dynamic mode",
        "torch.compiler.cudagraph_mark_step_begin": "",
    },
    "decode/compress.py": {
        "torch.nn.Module.register_forward_pre_hook": "hook with_kwargs",
        "torch.nn.Module.register_forward_hook": "hook with_kwargs always_call",
        "transformers.GenerationMixin.generate": "inputs generation_config assistant_model custom_generate kwargs",
    },
    "decode/forward.py": {
        "transformers.masking_utils.create_causal_mask": f"config inputs_embeds attention_mask {CACHE} position_ids",
        "transformers.masking_utils.create_sliding_window_causal_mask": (
            f"config inputs_embeds attention_mask {CACHE} position_ids"
        ),
    },
    "decode/sampling.py": {
        "transformers.TemperatureLogitsWarper": "temperature",
        "transformers.TopKLogitsWarper": "top_k",
        "transformers.TopPLogitsWarper": "top_p",
        "transformers.GenerationMixin.generate": "logits_processor streamer stopping_criteria",
    },
    "decode/call.py": {
        "transformers.GenerationConfig.get_generation_mode": "assistant_model",
        "transformers.GenerationConfig.update": "kwargs",
    },
    "chat/prompts.py": {
        "transformers.PreTrainedTokenizerBase.encode": "text add_special_tokens kwargs",
        "transformers.PreTrainedTokenizerBase.apply_chat_template": "conversation tokenize add_generation_prompt "
        "kwargs",
    },
    "engines/vllm/blocks.py": {"vllm.v1.core.block_pool.BlockPool.free_blocks": "ordered_blocks"},
    "harness/lm_eval/model.py": {
        "lm_eval.api.registry.register_model": "names",
        "lm_eval.api.model.CacheHook.add_partial": "attr req res",
        "lm_eval.models.utils.normalize_gen_kwargs": "gen_kwargs default_max_gen_toks",
        "lm_eval.utils.simple_parse_args_string": "args_string",
        "lm_eval.api.instance.Instance": "arguments idx metadata",
    },
    "engines/vllm/evictor.py": {"vllm.v1.worker.utils.AttentionGroup": "backend layer_names"},
    "engines/vllm/gpu.py": {
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner": "vllm_config device",
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner": "vllm_config device",
    },
    "engines/vllm/plugin.py": {
        "vllm.engine.arg_utils.EngineArgs.create_engine_config": "self",
        "vllm.tokenizers.cached_tokenizer_from_config": "model_config",
        "vllm.v1.engine.input_processor.InputProcessor.process_inputs": "self",
    },
    "engines/vllm/refusals.py": {
        "vllm.v1.kv_cache_interface.is_quantized_kv_cache": "kv_cache_dtype",
        "vllm.v1.kv_cache_interface.FullAttentionSpec": "sliding_window attention_chunk_size",
        "vllm.v1.kv_cache_interface.KVCacheConfig": "kv_cache_groups",
        "vllm.v1.kv_cache_interface.KVCacheGroupSpec": "layer_names kv_cache_spec",
        "vllm.v1.engine.EngineCoreRequest": "prompt_token_ids prompt_embeds resumable",
    },
    "engines/vllm/runner_v1.py": {
        "vllm.v1.core.sched.output.SchedulerOutput": "scheduled_new_reqs scheduled_cached_reqs num_scheduled_tokens "
        "total_num_scheduled_tokens finished_req_ids preempted_req_ids",
        "vllm.v1.core.sched.output.NewRequestData": "req_id",
        "vllm.v1.core.sched.output.CachedRequestData": "resumed_req_ids",
        "vllm.v1.worker.block_table.BlockTable.get_device_tensor": "num_reqs",
        "vllm.v1.worker.gpu_input_batch.CachedRequestState": "prompt_token_ids block_ids",
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner.initialize_kv_cache": "kv_cache_config is_profiling",
    },
    "engines/vllm/runner_v2.py": {
        "vllm.v1.core.sched.output.NewRequestData": "req_id prompt_token_ids",
        "vllm.v1.worker.gpu.input_batch.InputBatch": "req_ids num_reqs num_tokens seq_lens seq_lens_cpu_upper_bound "
        "positions input_ids num_scheduled_tokens num_computed_tokens_np",
        "vllm.v1.worker.gpu.model_runner.GPUModelRunner.initialize_kv_cache": "kv_cache_config is_profiling",
        "vllm.v1.worker.gpu.async_utils.AsyncOutput": "model_runner_output",
    },
}
"""Of functions, or of what makes an object whose fields are read."""


@pytest.mark.parametrize(("place", "name", "named"), rows(CALLED))
def test_parameters_that_are_named_are_there(place: str, name: str, named: str) -> None:
    with relied_upon_by(place):
        missing = set(named.split()) - set(inspect.signature(find(name)).parameters)
        assert not missing, f"{name} has no {missing}"


SCHEDULER, RUNNER = "vllm.v1.core.sched.scheduler.Scheduler", "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
RUNNER_V2 = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
EVICTED = "device max_num_reqs max_model_len vllm_config model_config compilation_config attn_groups"
ATTRIBUTES = {
    "bench/engines.py": {"transformers.cache_utils.DynamicLayer": "keys values"},
    "engines/vllm/blocks.py": {
        "vllm.v1.core.block_pool.BlockPool": "num_gpu_blocks",
        "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator": "single_type_managers",
        "vllm.v1.core.kv_cache_manager.KVCacheManager": "max_model_len coordinator block_pool",
        "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager": "block_size req_to_blocks",
        "vllm.v1.request.Request": "request_id num_prompt_tokens num_computed_tokens max_tokens",
    },
    "engines/vllm/cpu.py": {
        "vllm.v1.worker.cpu_worker.CPUWorker": "model_runner",
        RUNNER: "input_batch discard_request_mask",
        "vllm.v1.worker.gpu_input_batch.InputBatch": "generators num_reqs",
    },
    "engines/vllm/plugin.py": {"vllm.v1.engine.input_processor.InputProcessor": "vllm_config"},
    "engines/vllm/evictor.py": {
        RUNNER: EVICTED,
        RUNNER_V2: EVICTED,
        "vllm.model_executor.layers.attention.attention.Attention": "kv_cache impl head_size "
        "kv_sharing_target_layer_name",
    },
    "engines/vllm/runner_v1.py": {
        RUNNER: "requests input_batch execute_model_state optimistic_seq_lens_cpu seq_lens positions req_indices "
        "query_start_loc input_ids",
        "vllm.v1.worker.gpu_input_batch.InputBatch": "block_table num_reqs req_id_to_index num_computed_tokens_cpu",
        "vllm.v1.worker.block_table.BlockTable": "block_size num_blocks_per_row",
    },
    "engines/vllm/runner_v2.py": {
        RUNNER_V2: "execute_model_state block_tables req_states",
        "vllm.v1.worker.gpu.block_table.BlockTables": "block_tables block_sizes num_blocks",
        "vllm.v1.worker.gpu.buffer_utils.StagedWriteTensor": "gpu",
        "vllm.v1.worker.gpu.buffer_utils.UvaBackedTensor": "np",
        "vllm.v1.worker.gpu.states.RequestState": "req_id_to_index",
        "vllm.v1.worker.gpu.async_utils.AsyncOutput": "model_runner_output",
    },
    "engines/vllm/scheduler.py": {SCHEDULER: "kv_cache_config vllm_config kv_cache_manager requests"},
}
"""Of instances."""


def assigned(owner: type) -> set[str]:
    """Attributes that a class or its bases set on themselves."""
    found = set(dir(owner))
    for base in owner.__mro__[:-1]:
        source = ast.walk(ast.parse(dedent(inspect.getsource(base))))
        found |= {node.attr for node in source if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return found


@pytest.mark.parametrize(("place", "name", "named"), rows(ATTRIBUTES))
def test_attributes_that_are_read_are_there(place: str, name: str, named: str) -> None:
    with relied_upon_by(place):
        missing = set(named.split()) - assigned(find(name))
        assert not missing, f"instances of {name} have no {missing}"


# --- methods that dynts overrides


def derived() -> dict[str, dict[str, str]]:
    """Classes of dynts that derive from one of theirs, through others or not, by file."""
    classes = [(place, node) for place, nodes in SOURCES.items() for node in nodes if isinstance(node, ast.ClassDef)]
    bases = {
        (place, node.name): {part.id for part in node.bases if isinstance(part, ast.Name)} for place, node in classes
    }
    known = {name.split(".")[-1] for name in imported()}
    while more := {name for (_, name), named in bases.items() if named & known} - known:
        known |= more
    table: dict[str, dict[str, str]] = defaultdict(dict)
    for (place, name), named in bases.items():
        if named & known:
            table[place][f"dynts.{place.removesuffix('.py').replace('/', '.')}.{name}"] = ""
    return table


@pytest.mark.parametrize(("place", "name", "_"), rows(derived()))
def test_overridden_methods_take_what_they_are_called_with(place: str, name: str, _: str) -> None:
    with relied_upon_by(place):
        ours = find(name)
        theirs = [base for base in ours.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
        assert theirs
        for method, function in vars(ours).items():
            above = next((vars(base)[method] for base in theirs if method in vars(base)), None)
            if isinstance(function, FunctionType) and isinstance(above, FunctionType) and method != "__init__":
                taken = inspect.signature(above).parameters.values()
                named = [part.name for part in taken if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)]
                inspect.signature(function).bind(**dict.fromkeys(named))


def vllm_places() -> dict[str, dict[str, str]]:
    """`signatures` of `dynts.engines.vllm.refusals`, checked when an engine starts too, by the place that relies on
    them."""
    from dynts.engines.vllm.refusals import VERSIONS, signatures

    places = {
        ".sched.": "engines/vllm/scheduler.py",
        ".kv_cache_manager.": "engines/vllm/blocks.py",
        ".kv_cache_interface.": "engines/vllm/blocks.py",
        ".gpu_worker.": "engines/vllm/gpu.py",
        ".worker.gpu.": "engines/vllm/runner_v2.py",
        ".worker.": "engines/vllm/runner_v1.py",
    }
    table: dict[str, dict[str, str]] = defaultdict(dict)
    # of the CPU build, which is the oldest
    for name, parameters in {**signatures(VERSIONS[0], v2=False), **signatures(VERSIONS[0], v2=True)}.items():
        table[next(place for part, place in places.items() if part in name)][name] = parameters
    return table


@pytest.mark.parametrize(("place", "name", "parameters"), rows(vllm_places()))
def test_signatures_that_the_plugin_was_written_for(place: str, name: str, parameters: str) -> None:
    with relied_upon_by(place, "engines/vllm/refusals.py"):
        assert " ".join(inspect.signature(find(name)).parameters) == parameters


@needs_lm_eval
@relied_upon_by("harness/lm_eval/model.py")
def test_lm_eval_asks_for_a_device_by_default_and_takes_up_what_a_model_says() -> None:
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.evaluator import simple_evaluate

    from dynts.harness.lm_eval.model import LM_EVAL_DEVICE

    assert EvaluatorConfig().device == LM_EVAL_DEVICE
    assert "get_model_info" in inspect.getsource(inspect.unwrap(simple_evaluate))


@needs_vllm
@relied_upon_by("engines/vllm/plugin.py", "engines/vllm/runner_v1.py", "engines/vllm/runner_v2.py")
def test_vllm_chooses_classes_by_name_and_its_objects_take_notes() -> None:
    from dynts.engines.vllm.plugin import WORKERS

    for name in WORKERS:
        if "cpu" in name or torch.cuda.is_available():
            find(name)
    # the plugin writes dynts_due and dynts_compacted to them
    for name in ("vllm.v1.core.sched.output.SchedulerOutput", "vllm.v1.outputs.ModelRunnerOutput"):
        assert "__dict__" in dir(find(name))


@relied_upon_by("cache/interface.py", "cache/cache.py")
def test_a_compressed_cache_answers_or_refuses_everything_that_a_cache_can_do() -> None:
    # what changes nothing of the past, or belongs to kinds of layers that dynts refuses
    harmless = {
        *("prefetch", "offload", "early_initialization", "activate_past_recording", "is_recording_past"),
        *("get_seq_length", "get_max_length", "get_max_cache_shape", "max_cache_len", "get_mask_sizes"),
        *("batch_size", "max_batch_size", "is_initialized", "is_sliding", "is_dummy", "is_linear"),
        *("update_conv_state", "get_conv_state", "update_recurrent_state", "get_recurrent_state", "has_previous_state"),
        "update_indexer",
    }
    ours = {*vars(FixedRowsCache), *vars(BudgetCache)}
    unknown = {name for name in vars(Cache) if not name.startswith("_")} - ours - harmless
    assert unknown <= {"is_compileable", "is_croppable"}
    # transformers compiles, and goes back a step in, a cache that says it can
    layer = BudgetLayer(Occupancy(Contents(torch.device("cpu"), SlotColumns(1, 1))))
    assert not layer.is_compileable
    assert not getattr(layer, "is_croppable", False)


# --- how transformers behaves


class Watched:
    """What a model's decoder is called with, pass by pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.passes: list[dict[str, Any]] = []
        model.get_decoder().register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        self.passes.append(kwargs)

    def widths(self) -> list[int]:
        """Columns of each pass."""
        return [kwargs["input_ids"].shape[1] for kwargs in self.passes]


@relied_upon_by("cache/interface.py")
@pytest.mark.parametrize("architecture", TINY_NAMES)
def test_one_name_for_the_cache(architecture: str) -> None:
    model = tiny_model(architecture)
    watched = Watched(model)
    cache = DynamicCache(config=model.config)
    output = model.generate(PROMPT, **{CACHE: cache}, return_dict_in_generate=True, **GREEDY)
    assert output[CACHE] is cache
    assert all(kwargs[CACHE] is cache for kwargs in watched.passes)
    assert model(PROMPT)[CACHE].get_seq_length() == 8
    for part in (model, model.get_decoder(), type(model.get_decoder())):
        named = inspect.signature(part.forward).parameters
        assert {CACHE, "position_ids"} <= set(named)
        assert len({"cache", "past_key_values"} & set(named)) == 1


@relied_upon_by("decode/call.py", "decode/compress.py")
def test_what_generate_feeds() -> None:
    model = tiny_model("llama")
    watched = Watched(model)
    cache = DynamicCache(config=model.config)
    first = model.generate(PROMPT, **{CACHE: cache}, **GREEDY)
    assert watched.widths() == [8, 1, 1, 1]
    whole = torch.cat([first, torch.tensor([[9, 10]])], dim=1)
    watched.passes.clear()
    expected = model.generate(whole, **{CACHE: cache}, **GREEDY)
    assert watched.widths() == [3, 1, 1, 1]
    # the same with the new tokens alone, and a mask for all
    again = DynamicCache(config=model.config)
    model.generate(PROMPT, **{CACHE: again}, **GREEDY)
    watched.passes.clear()
    mask = torch.ones_like(whole)
    new = model.generate(whole[:, 11:], attention_mask=mask, **{CACHE: again}, **GREEDY)
    assert watched.widths() == [3, 1, 1, 1]
    assert torch.equal(new[:, 3:], expected[:, 14:])


@relied_upon_by("decode/call.py")
@pytest.mark.parametrize(("end", "padding"), [(None, True), (5, True), (2, False), ([5, 2], False)])
def test_padding_is_inferred_unless_it_ends_a_sequence(end: Any, padding: bool) -> None:
    model = tiny_model("llama")
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 2, end
    watched = Watched(model)
    model.generate(torch.tensor([[2, 2, 9, 10], [9, 2, 11, 12]]), do_sample=False, max_new_tokens=1)
    mask = watched.passes[0].get("attention_mask")
    expected = [[0, 0, 1, 1], [1, 0, 1, 1]] if padding else [[1] * 4] * 2
    assert (torch.ones(2, 4, dtype=torch.long) if mask is None else mask).tolist() == expected


@relied_upon_by("decode/call.py")
def test_generation_configurations() -> None:
    config = GenerationConfig()
    unset = {
        "use_cache": True,
        "num_return_sequences": None,
        "cache_implementation": None,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    assert all(getattr(config, name) in (value, None) for name, value in unset.items())
    assert config.to_dict()["num_beams"] is None
    assert config.get_generation_mode(None) is configuration_utils.GenerationMode.GREEDY_SEARCH
    config.update(do_sample=True)
    assert config.get_generation_mode(None) is configuration_utils.GenerationMode.SAMPLE
    config.update(num_beams=2, do_sample=False)
    assert config.get_generation_mode(None) is configuration_utils.GenerationMode.BEAM_SEARCH
    assert GenerationConfig().get_generation_mode(object()) is configuration_utils.GenerationMode.ASSISTED_GENERATION


@relied_upon_by("decode/call.py", "decode/compress.py")
def test_a_cache_excludes_an_implementation_by_name() -> None:
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(PROMPT, **{CACHE: DynamicCache()}, cache_implementation="dynamic", **GREEDY)


@relied_upon_by("decode/sampling.py", "decode/answers.py", "engines/transformers.py", "serve/running.py")
def test_processors_streamers_and_criteria_see_every_step_of_all_rows() -> None:
    class Choose(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            assert input_ids.shape == (2, 8 + len(steps))
            assert scores.shape == (2, 64)
            assert scores.dtype == torch.float32
            steps.append(len(steps))
            chosen = torch.tensor([[10 + len(steps)], [20 + len(steps)]])
            return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)

    class Put(streamers.BaseStreamer):
        def put(self, value: Tensor) -> None:
            put.append(value.tolist())

        def end(self) -> None:
            put.append("end")

    class EndSecond(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            last.append(input_ids[:, -1].tolist())
            return torch.tensor([False, True])

    steps: list[int] = []
    put: list[Any] = []
    last: list[list[int]] = []
    output = tiny_model("llama").generate(
        input_ids=PROMPT.repeat(2, 1),
        pad_token_id=3,
        eos_token_id=63,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        max_new_tokens=3,
        logits_processor=[Choose()],
        streamer=Put(),
        stopping_criteria=[EndSecond()],
    )
    # the second row has ended, and is fed padding until the first one has
    assert output[:, 8:].tolist() == [[11, 12, 13], [21, 3, 3]]
    assert put == [PROMPT.repeat(2, 1).tolist(), [11, 21], [12, 3], [13, 3], "end"]
    assert last == [[11, 21], [12, 3], [13, 3]]


@relied_upon_by("decode/compress.py")
def test_hooks_change_the_arguments_and_see_failures() -> None:
    model = tiny_model("llama")
    decoder, outputs = model.get_decoder(), []
    expected = model(PROMPT + 1).logits
    before = decoder.register_forward_pre_hook(lambda *_: ((), {"input_ids": PROMPT + 1}), with_kwargs=True)
    decoder.register_forward_hook(lambda *seen: outputs.append(seen[3]), with_kwargs=True, always_call=True)
    assert torch.equal(model(PROMPT).logits, expected)
    assert torch.equal(outputs[0][0], outputs[0].last_hidden_state)
    before.remove()
    decoder.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(PROMPT)
    assert outputs[1:] == [None]


@relied_upon_by("decode/compress.py")
def test_a_call_of_a_module_can_be_replaced_hooks_included() -> None:
    model = tiny_model("llama")
    expected, calls = model(PROMPT).logits, []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return model._call_impl(*args, **kwargs)

    model.__dict__["_compiled_call_impl"] = call
    assert torch.equal(model(PROMPT).logits, expected)
    del model.__dict__["_compiled_call_impl"]
    assert model._compiled_call_impl is None  # of the class
    assert torch.equal(model(PROMPT).logits, expected)
    assert len(calls) == 1


class Attention:
    """A registered attention function that notes what it is given."""

    def __init__(self, masks: Callable[..., Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        AttentionInterface.register("relied_upon", self)
        AttentionMaskInterface.register("relied_upon", masks)

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        self.calls.append((module.layer_idx, query, key, mask, more))
        return query.transpose(1, 2).contiguous(), None


@relied_upon_by("models/attention.py", "training/labels.py")
@pytest.mark.parametrize("architecture", TINY_NAMES)
def test_attention_functions_see_rotated_queries_all_keys_and_our_own_arguments(architecture: str) -> None:
    model = tiny_model(architecture)
    usual = model.config._attn_implementation
    assert callable(AttentionInterface().get_interface("sdpa", None))
    # eager attention is each modeling file's own
    assert callable(sys.modules[type(model.get_decoder()).__module__].eager_attention_forward)
    attention = Attention(AttentionMaskInterface()[usual])
    model.set_attn_implementation("relied_upon")
    assert model.config._attn_implementation == "relied_upon"
    cache = DynamicCache(config=model.config)
    for ids in (PROMPT, torch.tensor([[9]])):
        model(input_ids=ids, **{CACHE: cache}, use_cache=True, attention_observer=42)
    layers = model.config.num_hidden_layers
    assert [call[0] for call in attention.calls] == [*range(layers)] * 2
    for layer, query, key, _, more in attention.calls[layers:]:
        assert query.shape == (1, 4, 1, 8)
        assert key.shape == (1, 2, 9 if type(cache.layers[layer]) is cache_utils.DynamicLayer else 8, 8)
        assert more["attention_observer"] == 42
        assert isinstance(more["scaling"], float)
        assert not more["dropout"]
        assert more.get("softcap") == model.config.to_dict().get("attn_logit_softcapping")
    # rotated: the key that the cache holds is the last one that attention saw
    assert torch.equal(cache.layers[-1].keys[:, :, -1], attention.calls[-1][2][:, :, -1])
    model.set_attn_implementation(usual)


@relied_upon_by("decode/forward.py")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_masks_that_are_made_already_reach_attention_as_they_are(architecture: str) -> None:
    model = tiny_model(architecture)
    usual = model.config._attn_implementation
    attention = Attention(AttentionMaskInterface()[usual])
    model.set_attn_implementation("relied_upon")
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * model.config.num_hidden_layers
    masks = {kind: torch.ones(1, 1, 1, 8 + len(kind), dtype=torch.bool) for kind in kinds}
    model.get_decoder()(
        input_ids=torch.tensor([[9]]),
        attention_mask=masks if len(masks) > 1 else masks["full_attention"],
        position_ids=torch.tensor([[5]]),
        **{CACHE: DynamicCache(config=model.config)},
    )
    assert all(call[3] is masks[kinds[call[0]]] for call in attention.calls)
    # boolean for sdpa, additive for eager
    attention.calls.clear()
    model(input_ids=PROMPT.repeat(2, 1), attention_mask=torch.tensor([[0] * 4 + [1] * 4, [1] * 8]))
    assert attention.calls[0][3].dtype == (torch.bool if usual == "sdpa" else torch.float32)
    model.set_attn_implementation(usual)


@relied_upon_by("decode/forward.py", "cache/cache.py", "cache/layer.py")
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_mask_functions_ask_the_cache_for_sizes_by_kind_of_layer(architecture: str) -> None:
    class Asked(DynamicCache):
        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            sizes.append((query_length, layer_idx))
            return super().get_mask_sizes(query_length, layer_idx)

        def get_query_offset(self, layer_idx: int = 0) -> int:
            offsets.append(layer_idx)
            return super().get_query_offset(layer_idx)

    sizes: list[tuple[int, int]] = []
    offsets: list[int] = []
    model = tiny_model(architecture)
    cache = Asked(config=model.config)
    full, sliding = (model.config.layer_types.index(f"{kind}_attention") for kind in ("full", "sliding"))
    model(PROMPT, **{CACHE: cache})
    sizes.clear(), offsets.clear()
    common = {"config": model.config, "inputs_embeds": torch.empty(1, 1, 0), CACHE: cache, "position_ids": None}
    ones = torch.tensor([[0] + [1] * 8])
    assert masking_utils.create_causal_mask(attention_mask=ones, **common).shape == (1, 1, 1, 9)
    masking_utils.create_sliding_window_causal_mask(attention_mask=ones, **common)
    assert (sizes, offsets) == ([(1, full), (1, sliding)], [full, sliding])


@relied_upon_by("models/shape.py", "cache/cache.py", "analyze/retention.py")
@pytest.mark.parametrize("architecture", TINY_NAMES)
def test_a_dynamic_cache_has_layers_by_the_configuration(architecture: str) -> None:
    config = tiny_model(architecture).config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    expected = {"full_attention": cache_utils.DynamicLayer, "sliding_attention": cache_utils.DynamicSlidingWindowLayer}
    cache = DynamicCache(config=config)
    assert [type(layer) for layer in cache.layers] == [expected[kind] for kind in kinds]
    states = torch.randn(1, 2, 5, 8)
    for index, layer in enumerate(cache.layers):
        assert layer.keys is None or layer.keys.numel() == 0
        cache.update(states, states + 1, index)
        assert torch.equal(layer.keys, states[:, :, -layer.keys.shape[2] :])
        assert torch.equal(layer.values, layer.keys + 1)
        layer.batch_repeat_interleave(3)
        assert layer.keys.shape[0] == 3
    assert cache.get_seq_length() == 5


@relied_upon_by("cache/cache.py", "cache/layer.py")
def test_a_cache_of_given_layers_hands_states_on_to_them() -> None:
    class Layer(cache_utils.CacheLayerMixin):
        is_sliding = False

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            given.append(kwargs)
            return key_states, value_states

        def get_seq_length(self) -> int:
            return 7

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return query_length + 3, 0

        def get_max_length(self) -> int:
            return -1

    given: list[dict[str, Any]] = []
    cache = Cache(layers=[Layer(), Layer()])
    keys, values = torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)
    assert cache.update(keys, values, 1, kwargs={"more": 1}) == (keys, values)
    assert given == [{"kwargs": {"more": 1}}]
    assert (cache.get_seq_length(1), cache.get_mask_sizes(2, 1), cache.is_sliding) == (7, (5, 0), [False, False])


@relied_upon_by("decode/refusals.py", "predictor/fingerprint.py", "models/shape.py")
@pytest.mark.parametrize("architecture", TINY_NAMES)
def test_what_is_read_of_a_model_and_its_configuration(architecture: str) -> None:
    model = tiny_model(architecture)
    config = model.config
    assert model._supports_attention_backend
    assert model.can_generate()
    assert config.get_text_config() is config
    assert not config.is_encoder_decoder
    assert model.get_input_embeddings().weight.shape == (64, 32)
    assert model.get_output_embeddings() is model.lm_head
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "model_type")
    assert all(getattr(config, name) for name in sizes)
    assert model(PROMPT, logits_to_keep=2).logits.shape == (1, 2, 64)


@relied_upon_by("decode/compiled.py")
def test_a_module_calls_a_forward_of_its_own_and_outputs_can_be_changed() -> None:
    model = tiny_model("llama")
    decoder = model.get_decoder()
    plain = decoder.forward
    expected = model(PROMPT).logits

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        output["last_hidden_state"] = output["last_hidden_state"] * 2
        return output

    decoder.forward = forward
    doubled = model(PROMPT).logits
    del decoder.forward
    torch.testing.assert_close(doubled, expected * 2)
    assert torch.equal(model(PROMPT).logits, expected)


@relied_upon_by("decode/compiled.py")
def test_torch_keeps_compiled_code_where_it_is_dropped() -> None:
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
    from torch._inductor import config as inductor
    from torch._inductor.codecache import PyCodeCache

    with inductor.patch({"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}):
        assert inductor.freezing
    assert not inductor.freezing
    assert isinstance(PyCodeCache.modules, list)

    def double(value: Tensor) -> Tensor:
        return value * 2

    own = FunctionType(double.__code__.replace(), double.__globals__, closure=double.__closure__)
    torch.compile(own, dynamic=False, backend="eager")(torch.ones(3))
    # by code object: the other function with the same text has nothing
    assert len(_debug_get_cache_entry_list(own.__code__)) == 1
    assert not _debug_get_cache_entry_list(double.__code__)
    reset_code(own.__code__)
    assert not _debug_get_cache_entry_list(own.__code__)


@relied_upon_by("decode/forward.py", "cache/cache.py")
def test_torch_knows_views_and_the_bytes_behind_them() -> None:
    whole = torch.zeros(4, 6)
    assert whole[:, 1:]._is_view()
    assert not whole.clone()._is_view()
    assert whole[:1].untyped_storage().nbytes() == 4 * 6 * 4


@relied_upon_by("chat/written.py")
def test_a_text_streamer_gets_the_prompt_first() -> None:
    class Put(TextStreamer):
        def put(self, value: Tensor) -> None:
            put.append(value.tolist())

        def end(self) -> None: ...

    put: list[Any] = []
    tiny_model("llama").generate(PROMPT, streamer=Put(None, skip_prompt=True), **{**GREEDY, "max_new_tokens": 2})  # type: ignore[arg-type]
    assert put[0] == PROMPT.tolist()
    assert [len(tokens) for tokens in put[1:]] == [1, 1]


@relied_upon_by("decode/sampling.py")
def test_transformers_warpers_go_in_the_order_of_ours() -> None:
    model = tiny_model("llama")
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=5, top_p=0.9)
    made = model._get_logits_processor(config)
    names = [type(warper).__name__ for warper in made if "Warper" in type(warper).__name__]
    assert names == ["TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"]


def test_torch_attends_by_lengths_and_captures_beside_other_threads() -> None:
    with relied_upon_by("models/lengths.py"):
        schema = torch._C._jit_get_schemas_for_operator("aten::_flash_attention_forward")[0]
        given = [argument.name for argument in schema.arguments]
        assert given[:7] == ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"]
        assert given[7:10] == ["dropout_p", "is_causal", "return_debug_mask"]
        assert {"scale", "seqused_k"} < set(given)
        assert schema.returns[0].name == "output"
    with relied_upon_by("decode/recorded.py"):
        assert "capture_error_mode" in inspect.signature(torch.cuda.graph.__init__).parameters


def test_transformers_leaves_hooks_behind_that_do_nothing() -> None:
    with relied_upon_by("decode/recorded.py"):
        model = tiny_model("llama")
        ids = torch.tensor([random_tokens(4, 1)])
        assert model(input_ids=ids, output_hidden_states=True).hidden_states is not None
        hooks = [hook for part in model.get_decoder().layers for hook in part._forward_hooks.values()]
        assert {hook.__module__ for hook in hooks} <= {_CAPTURING}
        assert model(input_ids=ids).hidden_states is None
