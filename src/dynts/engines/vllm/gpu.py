"""The worker on GPUs."""

from vllm.v1.worker.gpu_worker import Worker

from dynts.engines.vllm.runner_v1 import BudgetRunnerV1
from dynts.engines.vllm.runner_v2 import BudgetRunnerV2


class BudgetGPUWorker(Worker):
    """vLLM's worker for GPUs, under the budget."""

    def _make_model_runner(self) -> BudgetRunnerV1 | BudgetRunnerV2:
        return (BudgetRunnerV2 if self.use_v2_model_runner else BudgetRunnerV1)(self.vllm_config, self.device)
