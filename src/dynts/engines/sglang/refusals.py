"""What the plugin cannot do exactly, or with this SGLang: refused before a model loads or a request starts."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from dynts.config import CompressionConfig
from dynts.engines.compat import check_signatures, refuse
from dynts.engines.settings import PluginSettings
from dynts.errors import UnsupportedError
from dynts.models.shape import full_attention_layers

VERSION = "0.5.23"
_MANAGERS = "sglang.srt.managers"
_SCHEDULER = f"{_MANAGERS}.scheduler.Scheduler"
_BATCH = f"{_MANAGERS}.schedule_batch.ScheduleBatch"
_STREAMER = f"{_MANAGERS}.scheduler_components.output_streamer.SchedulerOutputStreamer"
_WORKER = f"{_MANAGERS}.tp_worker.TpModelWorker"
_ADDER = f"{_MANAGERS}.schedule_policy.PrefillAdder"
SIGNATURES = {
    "sglang.srt.server_args.ServerArgs.check_server_args": "self",
    "sglang.srt.arg_groups.overrides.resolving_view": "server_args",
    "sglang.srt.arg_groups.overrides.model_config_of": "server_args",
    f"{_MANAGERS}.tokenizer_manager.TokenizerManager._validate_one_request": "self obj input_ids",
    f"{_SCHEDULER}.__init__": "self server_args port_args",
    f"{_SCHEDULER}.init_req_max_new_tokens": "self req",
    f"{_SCHEDULER}.get_prefill_adder_class": "self",
    f"{_SCHEDULER}.get_output_streamer_class": "self",
    f"{_SCHEDULER}.get_init_info": "self",
    f"{_SCHEDULER}.init_tp_model_worker": "self",
    f"{_SCHEDULER}.update_running_batch": "self batch",
    f"{_SCHEDULER}._add_request_to_queue": "self req is_retracted",
    f"{_SCHEDULER}._create_generation_req": "self recv_req args kwargs",
    f"{_SCHEDULER}._relay_forward_payload": "self batch future_indices batch_result",
    f"{_SCHEDULER}._reqs_finishing_inflight": "self batch",
    f"{_STREAMER}._stream_output_generation": "self reqs return_logprob skip_req is_idle_batch",
    f"{_STREAMER}.build_additional_customized_info": "self reqs",
    f"{_BATCH}.prepare_for_decode": "self",
    f"{_BATCH}.retract_decode": "self",
    f"{_BATCH}.filter_batch": "self reqs_to_exclude keep_indices",
    f"{_BATCH}.merge_batch": "self other",
    f"{_MANAGERS}.schedule_batch.Req.reset_for_retract": "self",
    f"{_MANAGERS}.schedule_batch.Req.init_next_round_input": "self tree_cache cow_mamba",
    f"{_MANAGERS}.schedule_batch.Req.owned_kv_len": "self",
    f"{_ADDER}.add_one_req": "self req has_chunked_req truncation_align_size",
    f"{_ADDER}.preempt_to_schedule": "self req",
    f"{_ADDER}._get_running_request_total_token_offset": "self req",
    f"{_ADDER}._check_prefill_budget": "self req extend_input_len total_tokens swa_host_hit_length chunk_limit",
    f"{_ADDER}._update_prefill_budget": "self prefix_len extend_input_len max_new_tokens retracted_stain "
    "mamba_gap_reserve request_slot_reserve is_chunked_continuation replay_len",
    f"{_WORKER}.alloc_memory_pool": "self memory_pool_config req_to_token_pool token_to_kv_pool_allocator "
    "draft_parallel_layout",
    f"{_WORKER}.get_worker_info": "self",
    f"{_WORKER}.forward_batch_generation": "self batch forward_batch pp_proxy_tensors "
    "is_verify skip_attn_backend_init capture_hidden_mode return_kv_loc_plan",
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new": "cls batch model_runner capture_hidden_mode "
    "return_hidden_states_before_norm extend_position_info spec_mrope_positions kv_loc_plan write_cols",
    "sglang.srt.mem_cache.common.release_kv_cache": "req tree_cache checkpoint",
    "sglang.srt.mem_cache.common.checkpoint_kv_cache": "req tree_cache",
    "sglang.srt.mem_cache.allocation.alloc_for_decode_default": "batch token_per_req",
    "sglang.srt.mem_cache.allocator.TokenToKVPoolAllocator.free": "self free_index",
    "sglang.srt.runtime_context.RuntimeContext.override": "self source fields",
}
"""What the plugin overrides or relies on, with its parameters."""

ATTENTION = ("flashinfer", "fa3", "triton", "torch_native", "intel_amx")
"""Attention back ends that find a request's keys by its row and its length alone, and take pages of one token."""
KV_DTYPES = ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
_FLAGS = {
    "is_embedding": "embedding and reward models",
    "enable_mixed_chunk": "prompts and decode steps in one batch",
    "enable_two_batch_overlap": "batches in two halves",
    "enable_pdmux": "prompts beside decode steps",
    "enable_prefill_cp": "context parallelism",
    "enable_unified_memory": "KV caches of other layouts",
    "enable_page_major_kv_layout": "KV caches of other layouts",
    # they copy slots by their place in the sequence
    "enable_hierarchical_cache": "hierarchical KV caches",
    "enable_hisparse": "hierarchical KV caches",
    "enable_lmcache": "hierarchical KV caches",
    "enable_flexkv": "hierarchical KV caches",
    "enable_unified_cache_external_linker": "KV caches of other stores",
    "enable_session_radix_cache": "sessions",
    "enable_streaming_session": "sessions",
    # the predictor was trained for the hidden states of the model as it is on disk
    "enable_memory_saver": "weights that leave memory while the server runs",
    "enable_return_aux_hidden_states": "hidden states of several layers in the last one's place",
    # SGLang looks for them at the slots of a sequence, some of which have been given back
    "enable_return_routed_experts": "the experts that each token took",
    "enable_return_indexer_topk": "what each token's indexer chose",
    "enable_nvidia_megakernel": "models in one kernel, which tells no hidden states",
    "enable_amd_monokernel": "models in one kernel, which tells no hidden states",
    "use_ray": "schedulers as Ray actors, which load no plugins",
    "smg_grpc_mode": "the server of smg-grpc-servicer, which loads no plugins",
}
"""Settings that are off by default, and what they would bring."""


def check_sglang(version: str) -> None:
    """Refuse an SGLang that the plugin does not know.

    Args:
        version: of SGLang.

    Raises:
        UnsupportedError: names the version, or the method that has changed.
    """
    if version != VERSION:
        raise UnsupportedError(
            f"the dynts plugin knows SGLang {VERSION}, this is {version}: install sglang=={VERSION}, or unset the "
            "plugin's settings"
        )
    check_signatures(SIGNATURES, f"SGLang {version}", f"install an unmodified sglang=={VERSION}")


def check_server_args(server_args: Any) -> None:
    """Refuse settings of the server, and models, that the plugin does not support.

    Args:
        server_args: SGLang's `ServerArgs`, resolved.

    Raises:
        UnsupportedError: names the setting and what to do instead.
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.environ import envs

    args = resolving_view(server_args)
    backends = {args.attention_backend, args.prefill_attention_backend, args.decode_attention_backend}
    attention = ", ".join(sorted(backends - {None, *ATTENTION}))
    reasons = {f"{what}: drop --{name.replace('_', '-')}": getattr(args, name) for name, what in _FLAGS.items()} | {
        f"--device {args.device}: use cuda or cpu": args.device not in ("cuda", "cpu"),
        # some of them raise the size of a page, so they come first
        f"--attention-backend {attention}: use {', '.join(ATTENTION[:-1])} or {ATTENTION[-1]}": attention,
        f"pages of {args.page_size} tokens: use --page-size 1": args.page_size != 1,
        f"--kv-cache-dtype {args.kv_cache_dtype}: use {', '.join(KV_DTYPES)}": args.kv_cache_dtype not in KV_DTYPES,
        "speculative decoding: drop --speculative-algorithm": args.speculative_algorithm,
        "speculative decoding: drop --decoupled-spec-role": args.decoupled_spec_role != "null",
        "pipeline parallelism: use --pp-size 1": args.pp_size > 1,
        "context parallelism: use --dcp-size 1 and --attn-cp-size 1": max(args.dcp_size, args.attn_cp_size) > 1,
        "data-parallel attention: use --attn-dp-size 1": args.attn_dp_size > 1,
        "elastic expert parallelism: drop --elastic-ep-backend": args.elastic_ep_backend or args.ep_join_mode,
        "several nodes, each of which would read settings of its own: use --nnodes 1": args.nnodes > 1,
        "tokenizers in processes of their own, which load no plugins: use --tokenizer-worker-num 1": (
            args.tokenizer_worker_num > 1
        ),
        "the server in Rust, which loads no plugins: unset SGLANG_RUST_SERVER": envs.SGLANG_RUST_SERVER.get(),
        "prompts read by another server: drop --disaggregation-mode": args.disaggregation_mode != "null",
        "other prefix caches: drop --radix-cache-backend": args.radix_cache_backend,
        "LoRA adapters: merge one into the model, or drop --lora-paths and --enable-lora": (
            args.lora_paths or args.enable_lora
        ),
        "hidden states in answers: drop --return-hidden-states-mode and --enable-return-hidden-states": (
            args.return_hidden_states_mode
        ),
        "diffusion models: drop --dllm-algorithm": args.dllm_algorithm,
        # the predictor is held against the model's weights, whose memory comes before that of the KV cache
        "weights that come after the KV cache: use --startup-weight-load-mode serial": (
            args.startup_weight_load_mode != "serial"
        ),
        # it checks that a slot holds the token of its place in the sequence
        "the watch over slots of the KV cache: use --kv-canary none": args.kv_canary != "none",
    }
    refuse(reasons, "; or unset the plugin's settings")
    check_model(model_config_of(server_args))


def check_model(model: Any) -> None:
    """Refuse models whose layers do not all have plain full attention.

    Args:
        model: SGLang's `ModelConfig`.

    Raises:
        UnsupportedError: names what is there instead.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch, is_deepseek_dsa, is_minimax_sparse

    text = model.hf_text_config
    reasons = {
        "embedding and reward models: use one that writes": not model.is_generation,
        "encoder-decoder models: use a decoder-only one": model.is_encoder_decoder,
        "multimodal models: use a language model": model.is_multimodal or model.model_is_mrope,
        "MLA: use a model with ordinary attention": model.attention_arch == AttentionArch.MLA,
        "layers without attention: use a model of full attention layers": (
            model.attention_arch == AttentionArch.SSM or mambaish_config(model)
        ),
        "sparse attention: use a model of full attention layers": is_deepseek_dsa(text) or is_minimax_sparse(text),
        "sliding windows: use a model of full attention layers": (
            model.is_hybrid_swa or model.is_local_attention_model or model.attention_chunk_size
        ),
        "embeddings of several tokens: use another model": model.use_ngram_embedding or model.use_engram,
    }
    refuse(reasons, ", or unset the plugin's settings")
    full = len(full_attention_layers(text))
    refuse({f"models with full attention in {full} of {text.num_hidden_layers} layers": full != text.num_hidden_layers})


def check_pool(tokens: int, schedule: CompressionConfig) -> None:
    """Refuse a pool in which no request would ever find room.

    Args:
        tokens: slots of the pool.
        schedule: the budget.

    Raises:
        UnsupportedError: names both numbers.
    """
    needed = schedule.budget + 2  # SGLang keeps two aside for what it admits
    if tokens < needed:
        raise UnsupportedError(
            f"a KV cache of {tokens} tokens has no room for one request under a budget of {schedule.budget}, which "
            f"takes {needed}: use a larger --max-total-tokens or --mem-fraction-static, or a smaller budget"
        )


def check_request(request: Any, prompt: Sequence[int] | None, schedule: CompressionConfig) -> None:
    """Refuse a request that cannot be decoded under the budget.

    Args:
        request: SGLang's `GenerateReqInput`.
        prompt: its tokens.
        schedule: the budget.

    Raises:
        DyntsError: the prompt is too long for the budget; names the smallest budget that would do.
        UnsupportedError: the request asks for something that the plugin does not support.
    """
    embeddings = prompt is None or request.input_embeds is not None or request.positional_embed_overrides is not None
    reasons = {
        "prompts of embeddings: send text or tokens": embeddings,
        "sessions: send the whole prompt, without session_params": request.session_params is not None,
        "beam search: drop beam_width": (request.sampling_params.get("beam_width") or 1) > 1,
    }
    refuse(reasons)
    schedule.check_question(len(prompt or ()))


def check_method(settings: PluginSettings) -> None:
    """Refuse methods that need more than SGLang keeps.

    Args:
        settings: as the user gave them.

    Raises:
        UnsupportedError: names the method.
    """
    all_tokens = (
        f"method {settings.method} with SGLang, which keeps no hidden states of shared prompts: use method dynts"
    )
    refuse({all_tokens: not settings.policy.protect_question})


def check_settings(settings: PluginSettings, server_args: Any) -> PluginSettings:
    """Return the settings as the schedulers need them.

    Args:
        settings: as the user gave them.
        server_args: SGLang's `ServerArgs`, resolved.

    Raises:
        DyntsError: the predictor cannot be read, is for another model or does not serve the method, or think markers
            are not known.
        UnsupportedError: the method is not supported.
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolving_view
    from sglang.srt.utils.hf_transformers import get_tokenizer

    check_method(settings)
    resolved, predictor = settings.resolve(model_config_of(server_args).hf_config)
    args = resolving_view(server_args)
    tokenizer = None
    if not args.skip_tokenizer_init:
        tokenizer = get_tokenizer(
            args.tokenizer_path,
            tokenizer_mode=args.tokenizer_mode,
            trust_remote_code=args.trust_remote_code,
            revision=args.revision,
            tokenizer_backend=args.tokenizer_backend,
        )
    resolved.scanner(tokenizer, predictor)
    return resolved


# --- hooks, which do nothing without settings


def guard_server(check: Callable[..., None], server_args: Any) -> None:
    """Refuse a server in the caller's process: goes around `ServerArgs.check_server_args`.

    Args:
        check: SGLang's.
        server_args: resolved; the plugin's settings go with them to all processes.
    """
    import sglang

    check(server_args)
    settings = PluginSettings.from_environment(os.environ)
    if settings is not None:
        check_sglang(sglang.__version__)
        check_server_args(server_args)
        settings = check_settings(settings, server_args)
        if server_args.max_total_tokens is not None:
            check_pool(server_args.max_total_tokens, settings.schedule)
    server_args._dynts = settings


def guard_request(validate: Callable[..., None], manager: Any, request: Any, prompt: Sequence[int] | None) -> None:
    """Refuse a request with an answer 400: goes around `TokenizerManager._validate_one_request`.

    Args:
        validate: SGLang's, which makes an answer 400 of a `ValueError`.
        manager: SGLang's `TokenizerManager`.
        request: what was asked for.
        prompt: its tokens.
    """
    validate(manager, request, prompt)
    settings = settings_of(manager.server_args)
    if settings is not None:
        check_request(request, prompt, settings.schedule)


def settings_of(server_args: Any) -> PluginSettings | None:
    """Return the settings of an engine; None if it runs as it is."""
    return getattr(server_args, "_dynts", None)
