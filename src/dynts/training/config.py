"""How to label and how to train. Light: the command line reads it before torch is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.config import MAX_TOKENS
from dynts.errors import DyntsError
from dynts.options import option
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS, check_window, find_labels

if TYPE_CHECKING:
    from dynts.traces.sets import TraceSets


def _separated(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What to keep, and how to label it.

    Args:
        labels: see `dynts.training.labels.label_trace`.
        future_window: see there.
        max_tokens: longer traces are dropped.
        keep_incorrect: keep traces whose answer is wrong or cannot be graded.
        all_tokens: label question and answer tokens too, for a predictor that scores them.
        limit: label the first fit traces only, this many.
        tokens_per_trace: store the hidden states of this many random tokens of a trace; None stores all.
        store_dtype: name of the dtype of the stored hidden states; None keeps the model's.
        seed: of the choice of tokens.
        chunk: attention rows held at a time; does not change the result.

    Raises:
        DyntsError: a value is out of range.
    """

    labels: Sequence[str] = option(
        SHARED_LABELS,
        command_line=",".join(SHARED_LABELS),
        kind=str,
        read=_separated,
        help="answer: mean attention from the answer; future: most attention from any later token; answer-native, "
        "future-native: the same for each layer and KV head.",
    )
    future_window: int = option(
        FUTURE_WINDOW, help="The future label counts tokens more than this many positions later."
    )
    max_tokens: int = option(MAX_TOKENS, help="Drop longer traces, prompt and answer included.")
    keep_incorrect: bool = option(False, help="Keep traces whose answer is wrong or cannot be graded.")
    all_tokens: bool = option(
        False, switch=True, help="Label question and answer tokens too, for predictors that serve dynts-all."
    )
    limit: int | None = option(None, help="Label the first fit traces only, this many.")
    tokens_per_trace: int | None = option(
        None, help="Store hidden states of this many random thinking tokens a trace (default: all)."
    )
    store_dtype: str | None = option(None, help="dtype of the stored hidden states (default: the model's).")
    seed: int = option(0, help="Seed for the choice of tokens.")
    chunk: int = option(128, help="Rows of attention in memory at a time; does not change the result.")

    def __post_init__(self) -> None:
        find_labels(self.labels)
        check_window(self.future_window)
        for name in ("limit", "tokens_per_trace", "chunk", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DyntsError(f"{name} must be at least 1, got {value}")
        if self.store_dtype is not None:
            from dynts.models import parse_dtype  # loads torch

            parse_dtype(self.store_dtype)

    def selection(self, sets: "TraceSets", chat: ChatOptions) -> dict[str, Any]:
        """Return what determines which traces are taken, for manifests.

        Args:
            sets: the traces.
            chat: how the model is talked to.
        """
        return {
            "traces_sha256": sets.sha256,
            "max_tokens": self.max_tokens,
            "keep_incorrect": self.keep_incorrect,
            "limit": self.limit,
            # only where it is set: folders of earlier versions can be continued
            **({"chat": chat.settings()} if chat != DEFAULT_CHAT else {}),
        }


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train; the defaults are the paper's, but for the batch.

    Args:
        label: which stored label to predict.
        transform: one of `dynts.training.transforms.TRANSFORMS`.
        epochs: passes over the training traces; the predictor of the last one is saved, so nothing is chosen by the
            held-out traces.
        batch_traces: traces per optimizer step, over all processes; None takes the paper's 256, or fewer so that an
            epoch has 100 steps (small batches did better on small trace sets).
        micro_traces: traces per forward pass of a process; bounds memory, does not change the result.
        learning_rate: peak of the schedule, a linear warm-up over 10% of the steps and a cosine decay to 0.
        weight_decay: of AdamW.
        held_out: share of the questions that are held out.
        seed: of the split, the weights and the order of the traces.
        bf16: compute in bfloat16 where that is safe (autocast); parameters, optimizer and loss stay float32.

    Raises:
        DyntsError: a value is out of range.
    """

    label: str = option("answer", help="Which stored label to predict; a native one for each layer and KV head.")
    transform: str = option("rank", help="How labels are scaled within a trace: rank, power, log or linear.")
    epochs: int = option(15, help="Passes over the training traces; the last one is saved.")
    batch_traces: int | None = option(
        None, help="Traces per step (default: the paper's 256, fewer where an epoch would have under 100 steps)."
    )
    micro_traces: int = option(4, help="Traces per forward pass of a process; bounds memory only.")
    learning_rate: float = option(5e-4, help="Peak learning rate.")
    weight_decay: float = option(0.01, help="Weight decay of AdamW.")
    held_out: float = option(0.2, help="Share of the questions kept for the reported metrics.")
    seed: int = option(0, help="Seed of split, weights and order.")
    bf16: bool = option(False, switch=True, help="Compute in bfloat16 where that is safe.")

    def __post_init__(self) -> None:
        from dynts.training.transforms import TRANSFORMS  # loads scipy

        for name in ("epochs", "batch_traces", "micro_traces"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DyntsError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise DyntsError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.transform not in TRANSFORMS:
            raise DyntsError(f"unknown transform {self.transform!r}: choose from {', '.join(TRANSFORMS)}")
