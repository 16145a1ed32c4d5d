"""What SGLang's worker does under the budget: score what is fed, and count positions on."""

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.tp_worker import TpModelWorker

from dynts.engines.settings import PluginSettings
from dynts.engines.sglang.evictor import SlotEvictor, check_layout
from dynts.engines.sglang.refusals import check_pool


class BudgetWorker(TpModelWorker):
    """Adds predictor and ledger to SGLang's worker.

    Args:
        settings: the plugin's.
    """

    def __init__(self, settings: PluginSettings, **kwargs: Any) -> None:
        self.settings = settings
        super().__init__(**kwargs)

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """Load predictor and ledger before SGLang takes what memory is left. Arguments as SGLang's."""
        self.evictor = SlotEvictor(self.settings, self.model_runner, self.tokenizer)
        super().alloc_memory_pool(*args, **kwargs)
        if self.settings.granularity == "native":
            check_layout(self.model_runner.token_to_kv_pool)

    def get_worker_info(self) -> tuple[Any, ...]:
        """Let requests be as long as the model's context, which the pool need not hold.

        Raises:
            UnsupportedError: the pool, whose size SGLang may settle as late as this, has no room for one request.
        """
        found = list(super().get_worker_info())
        check_pool(found[0], self.settings.schedule)
        longest = self.model_config.context_len - 1
        found[4:6] = longest, longest - 5
        return tuple(found)

    def forward_batch_generation(self, batch: ScheduleBatch | None, *args: Any, **kwargs: Any) -> Any:
        """Run the model, then score what it was fed. Arguments as SGLang's."""
        result = super().forward_batch_generation(batch, *args, **kwargs)
        if batch is not None and batch.forward_mode.is_decode():
            self.evictor.take_note(batch, result.logits_output.hidden_states)
        return result


def true_positions(init_new: Callable[..., Any], batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
    """Give generated tokens their positions in the sequence, where SGLang takes those among the cached ones.

    Args:
        init_new: SGLang's.
        batch: to run.
        args: further ones of SGLang's.
        kwargs: likewise.
    """
    made = init_new(batch, *args, **kwargs)
    if made.forward_mode.is_decode():
        made.positions = made.orig_seq_lens.to(made.positions.dtype) - 1
    return made
