"""The worker on GPUs."""

from vllm.v1.worker.gpu_worker import Worker

from dynts.engines.vllm.runner import BudgetRunner


class BudgetGPUWorker(Worker):
    """vLLM's worker for GPUs, under the budget."""

    def _make_model_runner(self) -> BudgetRunner:
        return BudgetRunner(self.vllm_config, self.device)
