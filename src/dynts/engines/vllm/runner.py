"""The model runner's part: tell attention what is cached, score new tokens, and compact."""

import logging
from typing import Any, cast

import numpy as np
import torch
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput, GPUModelRunner

from dynts.engines.vllm.layouts import LAYOUTS, moves_as_written, own_heads
from dynts.engines.vllm.ledger import Ledger
from dynts.engines.vllm.plugin import engine_scanner
from dynts.engines.vllm.refusals import check_kv_cache
from dynts.engines.vllm.settings import KEY, PluginSettings
from dynts.errors import UnsupportedError
from dynts.methods.dynts import predicted_scores
from dynts.predictor.fingerprint import check_fingerprint
from dynts.predictor.model import ImportancePredictor

logger = logging.getLogger(__name__)


class BudgetRunner(GPUModelRunner):
    """Adds the budget to a V1 model runner.

    Positions (RoPE) go on counting; lengths and slots are those of cached tokens.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then the predictor, and make room for the ledger, so that vLLM's memory profile sees both.

        Args:
            args: as vLLM's.
            kwargs: as vLLM's.

        Raises:
            DyntsError: the predictor was trained for another model.
        """
        super().load_model(*args, **kwargs)
        settings = PluginSettings.from_dict(self.vllm_config.additional_config[KEY])
        self.predictor = ImportancePredictor.from_pretrained(settings.predictor).to(self.device)
        check_fingerprint(
            self.predictor.config.fingerprint, cast(Any, _Fingerprinted(self)), self.predictor.config.base_model
        )
        known = self.predictor.config
        policy = settings.policy
        self.native, sets = policy.granularity == "native", None
        if self.native:
            parallel = get_tp_group()
            self.own_heads = own_heads(parallel.rank_in_group, parallel.world_size, known.kv_heads)
            sets = known.layers, self.own_heads.stop - self.own_heads.start
        self.ledger = Ledger(
            settings.schedule,
            engine_scanner(self.model_config, settings, self.predictor) if policy.protect_answer else None,
            self.max_num_reqs,
            self.max_model_len,
            torch.device(self.device),
            sets,
            policy.protect_question,
        )
        logger.info(
            "dynts: %.1f MB for token ids and scores of %d requests", self.ledger.bytes / 1e6, self.max_num_reqs
        )
        self.compacted: list[str] = []

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, is_profiling: bool = False, **kwargs: Any) -> None:
        """Allocate the cache, and check that its layout is the expected one.

        Args:
            kv_cache_config: vLLM's.
            is_profiling: whether the cache is only measured.
            kwargs: as vLLM's.

        Raises:
            UnsupportedError: attention back end or layout unknown, or layers share keys and values.
        """
        super().initialize_kv_cache(kv_cache_config, is_profiling, **kwargs)
        if is_profiling:
            return
        check_kv_cache(kv_cache_config)
        if self.shared_kv_cache_layers:
            raise UnsupportedError(
                f"{len(self.shared_kv_cache_layers)} layers of this model use the keys and values of others, which "
                "dynts does "
                "not support: use another model, or unset the plugin's settings"
            )
        (group,) = self.attn_groups[0]
        name = group.backend.get_name()
        if name not in LAYOUTS:
            raise UnsupportedError(
                f"dynts does not know how attention back end {name} lays out keys and values: "
                f"use --attention-backend with one of {', '.join(LAYOUTS)}"
            )
        self.move = LAYOUTS[name]
        context = self.compilation_config.static_forward_context
        layers = [context[layer] for layer in group.layer_names]
        self.layer_caches = [layer.kv_cache for layer in layers]

        def write(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
            layers[0].impl.do_kv_cache_update(layers[0], key, value, self.layer_caches[0], slots)

        if not moves_as_written(self.move, write, self.layer_caches[0], layers[0].head_size):
            raise UnsupportedError(
                f"attention back end {name} lays out this KV cache ({tuple(self.layer_caches[0].shape)}, "
                f"{self.layer_caches[0].dtype}) in another way than dynts knows: use another --attention-backend or "
                "dtype"
            )

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        for name in (*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())):
            self.ledger.finish(name)
        corrections = super()._update_states(scheduler_output)
        started = [request.req_id for request in scheduler_output.scheduled_new_reqs]
        for name in (*started, *scheduler_output.scheduled_cached_reqs.resumed_req_ids):
            self.ledger.start(name, self.requests[name].prompt_token_ids)
        return corrections

    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        evicted = np.array([self.ledger.entries[name].evicted for name in self.input_batch.req_ids], dtype=np.int32)
        if not evicted.any():
            return prepared
        requests, tokens = len(evicted), scheduler_output.total_num_scheduled_tokens
        self.optimistic_seq_lens_cpu[:requests] -= torch.from_numpy(evicted)
        shift = self.ledger.upload(evicted)
        self.seq_lens[:requests] -= shift
        slots = self.positions[:tokens] - shift[self.req_indices.gpu[:tokens]]
        self.input_batch.block_table.compute_slot_mapping(requests, self.query_start_loc.gpu[: requests + 1], slots)
        return prepared

    @torch.inference_mode()
    def execute_model(self, scheduler_output: SchedulerOutput, intermediate_tensors: Any = None) -> Any:
        """Run the model, then compact the requests that have reached the budget.

        Args:
            scheduler_output: what to feed.
            intermediate_tensors: as vLLM's.
        """
        output = super().execute_model(scheduler_output, intermediate_tensors)
        self.compacted = []
        if self.execute_model_state is not None:
            self._take_note(scheduler_output)
            self.compacted = self._due(scheduler_output)
            for first in range(0, len(self.compacted), self.ledger.at_once):
                self._compact(self.compacted[first : first + self.ledger.at_once])
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, and tell the scheduler whose cache was compacted."""
        output: ModelRunnerOutput | AsyncModelRunnerOutput = super().sample_tokens(grammar_output)
        told = output._model_runner_output if isinstance(output, AsyncGPUModelRunnerOutput) else output
        told.dynts_compacted = self.compacted
        return output

    def _take_note(self, scheduler_output: SchedulerOutput) -> None:
        """Add the step's tokens and their scores to the ledger."""
        assert self.execute_model_state is not None
        tokens, names = scheduler_output.total_num_scheduled_tokens, self.input_batch.req_ids
        requests = self.req_indices.gpu[:tokens]
        rows = self.ledger.upload([self.ledger.entries[name].row for name in names])[requests]
        positions, hidden = self.positions[:tokens], self.execute_model_state.hidden_states[:tokens]
        self.ledger.note_tokens(rows, positions, self.input_ids.gpu[:tokens])
        # pinned tokens need no scores: they are kept anyway
        pinned = np.array([self.ledger.entries[name].pinned for name in names])
        pinned = (pinned - self.input_batch.num_computed_tokens_cpu[: len(names)])[self.req_indices.np[:tokens]]
        scored = np.flatnonzero(self.query_pos.np[:tokens] >= pinned)
        if not len(scored):
            return
        evicted = np.array([self.ledger.entries[name].evicted for name in names])
        slots = positions - self.ledger.upload(evicted)[requests]
        if len(scored) < tokens:
            chosen = self.ledger.upload(scored)
            rows, slots, hidden = rows[chosen], slots[chosen], hidden[chosen]
        scores = predicted_scores(self.predictor, hidden, self.native)
        self.ledger.note_scores(rows, slots, scores[..., self.own_heads] if self.native else scores)

    def _due(self, scheduler_output: SchedulerOutput) -> list[str]:
        """The requests that have reached the budget; scheduler and worker must agree on them.

        Raises:
            RuntimeError: they do not.
        """
        budget = self.ledger.schedule.budget
        due = [
            name
            for name, tokens in scheduler_output.num_scheduled_tokens.items()
            if self.requests[name].num_computed_tokens + tokens - self.ledger.entries[name].evicted >= budget
        ]
        if due != scheduler_output.dynts_due:
            raise RuntimeError(f"dynts: requests due for eviction are {due} here, {scheduler_output.dynts_due} there")
        return due

    def _compact(self, due: list[str]) -> None:
        """Move the survivors together, in every layer, and give the emptied blocks up."""
        kept = self.ledger.choose(due)
        # with sets of its own each rank moves the heads that it has
        if not self.native and get_tensor_model_parallel_world_size() > 1:
            kept = get_tp_group().broadcast(kept)
        moves = self.ledger.evict(due, kept)
        table = self.input_batch.block_table[0]
        at = [self.input_batch.req_id_to_index[name] for name in due]
        blocks = table.get_device_tensor(self.input_batch.num_reqs)[self.ledger.upload(at)]
        source, target = (
            blocks[which, slot // table.block_size].long() * table.block_size + slot % table.block_size
            for which, slot in (
                (moves.which[:, None] if self.native else moves.which, moves.source),
                (moves.which, moves.target),
            )
        )
        for layer, cache in enumerate(self.layer_caches):
            self.move(cache, source[layer] if self.native else source, target)
        for name, row in zip(due, at, strict=True):
            held = cdiv(self.ledger.entries[name].settled, table.block_size)
            del self.requests[name].block_ids[0][held:]
            table.num_blocks_per_row[row] = held


class _Fingerprinted:
    """vLLM's model as `check_fingerprint` looks at it."""

    def __init__(self, runner: GPUModelRunner) -> None:
        self.config = runner.model_config.hf_config
        self.runner = runner

    def get_input_embeddings(self) -> torch.nn.Module:
        """As in transformers."""
        return self.runner.get_model().model.embed_tokens
