"""The worker on GPUs."""

from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.worker.gpu_worker import Worker

from dynts.engines.vllm.blocks import budget_specs
from dynts.engines.vllm.runner_v1 import BudgetRunnerV1
from dynts.engines.vllm.runner_v2 import BudgetRunnerV2


class BudgetGPUWorker(Worker):
    """vLLM's worker for GPUs, under the budget."""

    def _make_model_runner(self) -> BudgetRunnerV1 | BudgetRunnerV2:
        return (BudgetRunnerV2 if self.use_v2_model_runner else BudgetRunnerV1)(self.vllm_config, self.device)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Describe the caches of all layers."""
        return budget_specs(super().get_kv_cache_spec())
