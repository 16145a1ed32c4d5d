"""Label one trace after another with a loaded model: the part of labelling that an actor of a cluster can do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.markers import think_markers
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.config import ModelSource
from dynts.errors import DyntsError
from dynts.models import load_model, load_tokenizer
from dynts.models.shape import full_attention_layers
from dynts.predictor.fingerprint import fingerprint
from dynts.predictor.label import FUTURE_WINDOW, SHARED_LABELS, check_window, find_labels
from dynts.traces.filters import MAX_TOKENS
from dynts.traces.sets import TraceSets
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace, question_key
from dynts.training.labels import label_trace, labelled_span
from dynts.training.shards import Shard


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """What to keep, and how to label it.

    Args:
        labels: see `label_trace`.
        future_window: see `label_trace`.
        max_tokens: longer traces are dropped.
        keep_incorrect: keep traces whose answer is wrong or cannot be graded.
        limit: label the first fit traces only, this many.
        tokens_per_trace: store the hidden states of this many random tokens of a trace; None stores all.
        store_dtype: dtype of the stored hidden states; None keeps the model's.
        seed: of the choice of tokens.
        chunk: attention rows held at a time, see `label_trace`.
        all_tokens: label question and answer tokens too, for a predictor that scores them.

    Raises:
        DyntsError: a value is out of range.
    """

    labels: Sequence[str] = SHARED_LABELS
    future_window: int = FUTURE_WINDOW
    max_tokens: int = MAX_TOKENS
    keep_incorrect: bool = False
    limit: int | None = None
    tokens_per_trace: int | None = None
    store_dtype: torch.dtype | None = None
    seed: int = 0
    chunk: int = 128
    all_tokens: bool = False

    def __post_init__(self) -> None:
        find_labels(self.labels)
        check_window(self.future_window)
        for name in ("limit", "tokens_per_trace", "chunk", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DyntsError(f"{name} must be at least 1, got {value}")

    def selection(self, sets: TraceSets, chat: ChatOptions) -> dict[str, Any]:
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
class LabelTask:
    """One trace to label.

    Args:
        index: of the shard.
        trace: the trace.
        tokens: its tokens.
        correct: whether its answer is right.
    """

    index: int
    trace: Trace
    tokens: TokenizedTrace
    correct: bool

    @property
    def id(self) -> str:
        """Tells it from the others."""
        return str(self.index)


@dataclass(frozen=True, slots=True)
class Labeller:
    """A model that labels traces.

    Args:
        model: the base model of the predictor, on any device or several.
        tokenizer: its tokenizer.
        options: how to label.
        chat: how the model is talked to.

    Raises:
        UnsupportedError: no layer has full attention.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: LabelOptions
    chat: ChatOptions = DEFAULT_CHAT

    def __post_init__(self) -> None:
        full_attention_layers(self.model.config.get_text_config())

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the model."""
        format = self.chat.format(self.tokenizer)
        markers = think_markers(self.tokenizer, format.start, format.end)
        dtype = self.model.dtype
        return {
            "fingerprint": fingerprint(self.model),
            "compute_dtype": str(dtype).removeprefix("torch."),
            "store_dtype": str(self.options.store_dtype or dtype).removeprefix("torch."),
            "think_markers": asdict(markers) if markers else None,
        }

    def label(self, task: LabelTask) -> Shard:
        """One trace's shard, on the CPU.

        Raises:
            DyntsError: hidden states that are not finite.
        """
        tokens, options = task.tokens, self.options
        labelled = label_trace(
            self.model,
            tokens,
            options.labels,
            chunk=options.chunk,
            future_window=options.future_window,
            all_tokens=options.all_tokens,
        )
        rows = torch.arange(len(labelled.hidden))
        if options.tokens_per_trace is not None:
            # fewer hidden states; the labels stay whole, because transforms look at the whole trace
            generator = torch.Generator().manual_seed(options.seed + task.index)
            rows = torch.randperm(len(rows), generator=generator)[: options.tokens_per_trace].sort().values
        hidden = labelled.hidden[rows.to(labelled.hidden.device)]
        hidden = hidden.to(device="cpu", dtype=options.store_dtype or hidden.dtype)
        if not hidden.isfinite().all():
            raise DyntsError(
                f"the hidden states of trace {task.trace.id!r} are not finite, computed in {self.model.dtype} and "
                f"stored in {hidden.dtype}: choose other dtypes, such as bfloat16"
            )
        info = {
            **task.trace.columns,
            "id": task.trace.id,
            "question": question_key(task.trace.question),
            "correct": str(task.correct).lower(),
        }
        ids = torch.tensor(tokens.ids[labelled_span(tokens, options.all_tokens)])
        return Shard(hidden, rows, ids, labelled.labels, info)


@dataclass(frozen=True, slots=True)
class LabellerSpec:
    """How to start a `Labeller`: what is sent to another process, where the model is then loaded.

    Args:
        source: the model.
        options: how to label.
    """

    source: ModelSource
    options: LabelOptions

    def start(self) -> Labeller:
        """Load the model."""
        return Labeller(*load_model(self.source), self.options, self.source.chat)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone."""
        return load_tokenizer(self.source)
