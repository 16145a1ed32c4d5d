"""What the plugin cannot do exactly, or with this vLLM: refused before a model loads or a request starts."""

from typing import Any

from dynts.config import CompressionConfig
from dynts.engines.compat import check_signatures, refuse
from dynts.errors import UnsupportedError

VERSIONS = ("0.32", "0.33")
_SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"
_MANAGER = "vllm.v1.core.kv_cache_manager.KVCacheManager"
_SIGNATURES = {
    f"{_SCHEDULER}._reserve_prefill_lookahead": "self request num_computed_tokens num_new_tokens",
    f"{_SCHEDULER}._update_after_schedule": "self scheduler_output",
    f"{_SCHEDULER}._preempt_request": "self request timestamp drop_stale_output",
    f"{_SCHEDULER}.update_from_output": "self scheduler_output model_runner_output",
    f"{_MANAGER}.allocate_slots": "self request num_new_tokens num_new_computed_tokens new_computed_blocks "
    "num_lookahead_tokens num_external_computed_tokens delay_cache_blocks num_encoder_tokens full_sequence_must_fit "
    "reserved_blocks has_scheduled_reqs skip_zeroing_group_ids",
    f"{_MANAGER}.cache_blocks": "self request num_computed_tokens",
    f"{_MANAGER}.truncate_computed_blocks": "self blocks num_computed_tokens",
    f"{_MANAGER}.free": "self request",
    "vllm.v1.kv_cache_interface.FullAttentionSpec.max_memory_usage_bytes": "self vllm_config",
    "vllm.v1.worker.gpu_worker.Worker.get_kv_cache_spec": "self",
}
_OF_VERSION = {
    "0.32": {f"{_MANAGER}.get_computed_blocks": "self request"},
    "0.33": {f"{_MANAGER}.get_computed_blocks": "self request max_cache_hit_length"},
}
_V1 = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
_V2 = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
_INITIALIZE = "self kv_cache_config is_profiling kv_cache_allocation_context"
_OF_V1 = {
    f"{_V1}.load_model": "self load_dummy_weights model",
    f"{_V1}.initialize_kv_cache": _INITIALIZE,
    f"{_V1}._update_states": "self scheduler_output",
    f"{_V1}._prepare_inputs": "self scheduler_output num_scheduled_tokens",
    f"{_V1}.execute_model": "self scheduler_output intermediate_tensors",
    f"{_V1}.sample_tokens": "self grammar_output",
    "vllm.v1.worker.block_table.MultiGroupBlockTable.compute_slot_mapping": "self num_reqs query_start_loc positions",
}
_OF_V2 = {
    f"{_V2}.load_model": "self load_dummy_weights args model kwargs",
    f"{_V2}.initialize_kv_cache": _INITIALIZE,
    f"{_V2}.add_requests": "self scheduler_output",
    f"{_V2}.finish_requests": "self scheduler_output",
    f"{_V2}.prepare_attn": "self input_batch",
    f"{_V2}.execute_model": "self scheduler_output intermediate_tensors dummy_run skip_attn_for_dummy_run is_profile "
    "context_len valid_dummy_state_slots randomize_inputs",
    f"{_V2}.sample_tokens": "self grammar_output",
    "vllm.v1.worker.gpu.block_table.BlockTables.compute_slot_mappings": "self idx_mapping query_start_loc positions "
    "num_tokens_padded out",
    "vllm.v1.worker.gpu.block_table.BlockTables.append_block_ids": "self req_index new_block_ids overwrite",
}


def signatures(version: str, v2: bool) -> dict[str, str]:
    """Return the methods that the plugin overrides or relies on, with their parameters.

    Args:
        version: of vLLM, one of `VERSIONS`.
        v2: whether vLLM uses its V2 model runner; the other one's methods do not count.
    """
    return {**_SIGNATURES, **_OF_VERSION[version], **(_OF_V2 if v2 else _OF_V1)}


def check_vllm(version: str, v2: bool) -> None:
    """Refuse a vLLM that the plugin does not know.

    Args:
        version: of vLLM.
        v2: whether it uses its V2 model runner.

    Raises:
        UnsupportedError: names the version, or the method that has changed.
    """
    known = ".".join(version.split(".")[:2])
    if known not in VERSIONS:
        raise UnsupportedError(
            f"the dynts plugin knows vLLM {' and '.join(VERSIONS)}, this is {version}: "
            f"install vllm=={VERSIONS[-1]}.*, or unset the plugin's settings"
        )
    check_signatures(signatures(known, v2), f"vLLM {version}", f"install an unmodified vllm=={known}.*")


def check_config(config: Any) -> None:
    """Refuse engine settings that the plugin does not support.

    Args:
        config: a `VllmConfig`.

    Raises:
        UnsupportedError: names the setting and what to do instead.
    """
    from vllm.v1.kv_cache_interface import is_quantized_kv_cache

    parallel, cache, model = config.parallel_config, config.cache_config, config.model_config
    refused = {
        "pipeline parallelism: use --pipeline-parallel-size 1": parallel.pipeline_parallel_size > 1,
        "context parallelism: use --decode-context-parallel-size 1 and --prefill-context-parallel-size 1": (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1
        ),
        "dual batch overlap: drop --enable-dbo": parallel.use_ubatching,
        "speculative decoding: drop --speculative-config": config.speculative_config is not None,
        "KV connectors: drop --kv-transfer-config": config.kv_transfer_config is not None,
        "EC connectors: drop --ec-transfer-config": config.ec_transfer_config is not None,
        # the predictor was trained for the hidden states of the model as it is on disk, and lies among its weights
        "LoRA adapters: merge one into the model and train a predictor for it, or drop --enable-lora": (
            config.lora_config is not None
        ),
        "weights that change while the engine runs: drop --weight-transfer-config": (
            config.weight_transfer_config is not None
        ),
        "sleep mode, which may discard the predictor: drop --enable-sleep-mode": model.enable_sleep_mode,
        # vLLM looks for them where tokens were written, from where they are moved
        "the experts that each token took: drop --enable-return-routed-experts": config.aux_output_config.enabled,
        "diffusion models: use one that writes token by token": model.is_diffusion,
        f"a quantised KV cache ({cache.cache_dtype}): use --kv-cache-dtype auto": is_quantized_kv_cache(
            cache.cache_dtype
        ),
        "layers that share keys and values: drop --kv-sharing-fast-prefill": cache.kv_sharing_fast_prefill,
        "prompts as embeddings: drop --enable-prompt-embeds": model.enable_prompt_embeds,
        "MLA: use a model with ordinary attention": model.use_mla,
        "layers without attention: use a model of full attention layers": model.is_hybrid or model.is_attention_free,
        "encoder-decoder models: use a decoder-only one": model.is_encoder_decoder,
        "multimodal models: use a language model": model.is_multimodal_model,
        f"runner type {model.runner_type}: use --runner generate": model.runner_type != "generate",
        f"another scheduler ({config.scheduler_config.scheduler_cls}): drop --scheduler-cls": (
            config.scheduler_config.scheduler_cls is not None
        ),
    }
    refuse(refused, "; or unset the plugin's settings")


def check_kv_cache(kv_cache_config: Any) -> None:
    """Refuse models whose layers do not all have plain full attention.

    Args:
        kv_cache_config: vLLM's `KVCacheConfig`.

    Raises:
        UnsupportedError: names what is there instead.
    """
    from dynts.engines.vllm.blocks import BudgetSpec

    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    plain = [
        spec
        for spec in specs
        if type(spec) is BudgetSpec and spec.sliding_window is None and spec.attention_chunk_size is None
    ]
    if len(specs) != 1 or not plain:
        kinds = ", ".join(sorted({type(spec).__name__ for spec in specs})) or "none"
        raise UnsupportedError(
            f"dynts compacts models whose layers all have full attention, this one has {len(specs)} kinds of KV cache "
            f"({kinds}): use another model, or unset the plugin's settings"
        )


def check_request(request: Any, schedule: CompressionConfig) -> None:
    """Refuse a request that cannot be decoded under the budget.

    Args:
        request: vLLM's `EngineCoreRequest`.
        schedule: the budget.

    Raises:
        DyntsError: the prompt is too long for the budget; names the smallest budget that would do.
        UnsupportedError: the request's prompt is no list of tokens, or comes in parts.
    """
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise UnsupportedError("dynts needs prompts of tokens, not of embeddings")
    if request.resumable:
        raise UnsupportedError("dynts does not support prompts that are streamed in: send the whole prompt")
    schedule.check_question(len(request.prompt_token_ids))
