"""vLLM's second model runner under the budget."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from dynts.engines.vllm.evictor import Evictor


class BudgetRunnerV2(GPUModelRunner):
    """Adds the budget to vLLM's V2 model runner.

    Positions (RoPE) go on counting; the lengths that attention sees, and slots, are those of cached tokens. Sampling
    reads lengths too, to tell a prompt that goes on from one that has ended, and needs those of the sequence.
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

    def finish_requests(self, scheduler_output: SchedulerOutput) -> None:
        """Forget requests that have ended or are preempted. Arguments as vLLM's."""
        super().finish_requests(scheduler_output)
        for name in (*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())):
            self.evictor.ledger.finish(name)

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """Start requests, those too that start again after a preemption. Arguments as vLLM's."""
        super().add_requests(scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:
            self.evictor.ledger.start(request.req_id, request.prompt_token_ids)

    def prepare_attn(self, input_batch: InputBatch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Let attention see what is cached; `execute_model` puts the lengths right again. Arguments as vLLM's."""
        self.lengths = input_batch.seq_lens, input_batch.seq_lens_cpu_upper_bound
        evicted = self.evictor.evicted(input_batch.req_ids)
        if not evicted.any():
            return super().prepare_attn(input_batch)
        self.lengths = input_batch.seq_lens.clone(), input_batch.seq_lens_cpu_upper_bound.clone()
        requests, tokens = input_batch.num_reqs, input_batch.num_tokens
        upload = self.evictor.ledger.upload
        # in place, for CUDA graphs read this very memory
        input_batch.seq_lens[:requests] -= upload(evicted)
        input_batch.seq_lens_cpu_upper_bound[:requests] -= torch.from_numpy(evicted)
        slots = input_batch.positions.clone()
        slots[:tokens] -= upload(np.repeat(evicted, input_batch.num_scheduled_tokens))
        return super().prepare_attn(replace(input_batch, positions=slots))

    @torch.inference_mode()
    def execute_model(
        self, scheduler_output: SchedulerOutput, intermediate_tensors: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Run the model, then compact the requests that have reached the budget. Arguments as vLLM's."""
        output = super().execute_model(scheduler_output, intermediate_tensors, *args, **kwargs)
        self.compacted: list[str] = []
        state = self.execute_model_state
        # steps to warm up are vLLM's own: their requests are none of the scheduler's
        due = getattr(scheduler_output, "dynts_due", None)
        if state is None or due is None:
            return output
        batch, tokens = state.input_batch, state.input_batch.num_tokens
        batch.seq_lens, batch.seq_lens_cpu_upper_bound = self.lengths
        step = batch.req_ids, batch.num_computed_tokens_np, batch.num_scheduled_tokens
        self.evictor.take_note(*step, batch.input_ids[:tokens], batch.positions[:tokens], state.hidden_states[:tokens])
        self.evictor.check_due(due, *step)
        if due:
            self._compact(due)
        self.compacted = due
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, and tell the scheduler whose cache was compacted. Arguments as vLLM's."""
        output = super().sample_tokens(grammar_output)
        if output is not None:
            output.model_runner_output.dynts_compacted = self.compacted
        return output

    def _compact(self, due: list[str]) -> None:
        """Compact, and forget the emptied blocks."""
        tables = self.block_tables
        rows = [self.req_states.req_id_to_index[name] for name in due]
        blocks = tables.block_tables[0].gpu[self.evictor.ledger.upload(rows)]
        tables.num_blocks.np[0, rows] = self.evictor.compact(due, blocks, tables.block_sizes[0])
