"""How to train."""

from dataclasses import dataclass

from dynts.errors import DyntsError
from dynts.training.transforms import TRANSFORMS


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train; the defaults are the paper's, but for the batch.

    Args:
        label: which stored label to predict.
        transform: one of `TRANSFORMS`.
        epochs: passes over the training traces; the predictor of the last one is saved, so nothing is chosen by the
            held-out traces.
        batch_traces: traces per optimizer step, over all processes; None takes the paper's 256, or fewer so that an epoch
            has 100 steps (small batches did better on small trace sets).
        micro_traces: traces per forward pass of a process; bounds memory, does not change the result.
        learning_rate: peak of the schedule, a linear warm-up over 10% of the steps and a cosine decay to 0.
        weight_decay: of AdamW.
        held_out: share of the questions that are held out.
        seed: of the split, the weights and the order of the traces.
        bf16: compute in bfloat16 where that is safe (autocast); parameters, optimizer and loss stay float32.

    Raises:
        DyntsError: a value is out of range.
    """

    label: str = "answer"
    transform: str = "rank"
    epochs: int = 15
    batch_traces: int | None = None
    micro_traces: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    held_out: float = 0.2
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_traces", "micro_traces"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DyntsError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise DyntsError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.transform not in TRANSFORMS:
            raise DyntsError(f"unknown transform {self.transform!r}: choose from {', '.join(TRANSFORMS)}")
