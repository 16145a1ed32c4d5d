"""vLLM's first model runner under the budget."""

from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.v1.worker.gpu_model_runner import AsyncGPUModelRunnerOutput, GPUModelRunner

from dynts.engines.vllm.evictor import Evictor


class BudgetRunnerV1(GPUModelRunner):
    """Adds the budget to vLLM's V1 model runner.

    Positions (RoPE) go on counting; lengths and slots are those of cached tokens.
    """

    evictor: Evictor

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then the predictor. Arguments as vLLM's."""
        super().load_model(*args, **kwargs)
        self.evictor = Evictor(self)

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig, is_profiling: bool = False, **kwargs: Any) -> None:
        """Allocate the cache, and check that its layout is the expected one. Arguments as vLLM's."""
        super().initialize_kv_cache(kv_cache_config, is_profiling, **kwargs)
        if not is_profiling:
            self.evictor.adopt(self, kv_cache_config)

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        ledger = self.evictor.ledger
        for name in (*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())):
            ledger.finish(name)
        corrections = super()._update_states(scheduler_output)
        started = [request.req_id for request in scheduler_output.scheduled_new_reqs]
        for name in (*started, *scheduler_output.scheduled_cached_reqs.resumed_req_ids):
            ledger.start(name, self.requests[name].prompt_token_ids)
        return corrections

    def _prepare_inputs(self, scheduler_output: SchedulerOutput, num_scheduled_tokens: np.ndarray) -> Any:
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        evicted = self.evictor.evicted(self.input_batch.req_ids)
        if not evicted.any():
            return prepared
        requests, tokens = len(evicted), scheduler_output.total_num_scheduled_tokens
        self.optimistic_seq_lens_cpu[:requests] -= torch.from_numpy(evicted)
        shift = self.evictor.ledger.upload(evicted)
        self.seq_lens[:requests] -= shift
        slots = self.positions[:tokens] - shift[self.req_indices.gpu[:tokens]]
        self.input_batch.block_table.compute_slot_mapping(requests, self.query_start_loc.gpu[: requests + 1], slots)
        return prepared

    @torch.inference_mode()
    def execute_model(self, scheduler_output: SchedulerOutput, intermediate_tensors: Any = None) -> Any:
        """Run the model, then compact the requests that have reached the budget. Arguments as vLLM's."""
        output = super().execute_model(scheduler_output, intermediate_tensors)
        state = self.execute_model_state
        self.compacted: list[str] = []
        if state is None:
            return output
        names, tokens = self.input_batch.req_ids, scheduler_output.total_num_scheduled_tokens
        computed = self.input_batch.num_computed_tokens_cpu[: len(names)]
        fed = np.array([scheduler_output.num_scheduled_tokens[name] for name in names])
        self.evictor.take_note(
            names, computed, fed, self.input_ids.gpu[:tokens], self.positions[:tokens], state.hidden_states[:tokens]
        )
        due = scheduler_output.dynts_due
        self.evictor.check_due(due, names, computed, fed)
        if due:
            self._compact(due)
        self.compacted = due
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, and tell the scheduler whose cache was compacted. Arguments as vLLM's."""
        output: ModelRunnerOutput | AsyncModelRunnerOutput = super().sample_tokens(grammar_output)
        told = output._model_runner_output if isinstance(output, AsyncGPUModelRunnerOutput) else output
        told.dynts_compacted = self.compacted
        return output

    def _compact(self, due: list[str]) -> None:
        """Compact, and forget the emptied blocks."""
        table = self.input_batch.block_table[0]
        rows = [self.input_batch.req_id_to_index[name] for name in due]
        blocks = table.get_device_tensor(self.input_batch.num_reqs)[self.evictor.ledger.upload(rows)]
        needed = self.evictor.compact(due, blocks, table.block_size)
        for name, row, count in zip(due, rows, needed, strict=True):
            del self.requests[name].block_ids[0][count:]
            table.num_blocks_per_row[row] = count
