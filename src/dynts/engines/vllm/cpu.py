"""The worker on CPUs."""

from vllm.v1.worker.cpu_worker import CPUWorker  # isort: skip  (must come before vLLM's CPU model runners)

from typing import Any

import numpy as np
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.worker.cpu.model_runner import CPUModelRunner as CPUModelRunnerV2
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from dynts.engines.vllm.blocks import budget_specs
from dynts.engines.vllm.runner_v1 import BudgetRunnerV1
from dynts.engines.vllm.runner_v2 import BudgetRunnerV2


class BudgetCPUModelRunnerV1(BudgetRunnerV1, CPUModelRunner):
    """vLLM's V1 model runner for CPUs, under the budget."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample, but not from the seeds of requests whose prompt goes on: CPUs cannot turn those back."""
        generators = self.input_batch.generators
        unfinished = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs]).tolist()
        kept_back = {row: generators.pop(row) for row in unfinished if row in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(kept_back)


class BudgetCPUModelRunnerV2(BudgetRunnerV2, CPUModelRunnerV2):
    """vLLM's V2 model runner for CPUs, under the budget."""


class BudgetCPUWorker(CPUWorker):
    """vLLM's worker for CPUs, under the budget."""

    def init_device(self) -> None:
        """Build the model runner."""
        super().init_device()
        # vLLM builds its own one in the middle of a long method
        self.model_runner.__class__ = BudgetCPUModelRunnerV2 if self.use_v2_model_runner else BudgetCPUModelRunnerV1

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Describe the caches of all layers."""
        return budget_specs(super().get_kv_cache_spec())
