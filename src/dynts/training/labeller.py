"""Label one trace after another with a loaded model: the part of labelling that an actor of a cluster can do."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.chat.markers import think_markers
from dynts.chat.options import DEFAULT_CHAT, ChatOptions
from dynts.config import ModelSource
from dynts.errors import DyntsError
from dynts.models import load_model, load_tokenizer, parse_dtype
from dynts.models.shape import full_attention_layers
from dynts.predictor.fingerprint import fingerprint
from dynts.traces.tokens import TokenizedTrace
from dynts.traces.traces import Trace, question_key
from dynts.training.config import LabelOptions
from dynts.training.labels import label_trace, labelled_span
from dynts.training.shards import Shard


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
        """Return what the manifest says of the model."""
        format = self.chat.format(self.tokenizer)
        markers = think_markers(self.tokenizer, format.start, format.end)
        dtype = self.model.dtype
        return {
            "fingerprint": fingerprint(self.model),
            "compute_dtype": str(dtype).removeprefix("torch."),
            "store_dtype": self.options.store_dtype or str(dtype).removeprefix("torch."),
            "think_markers": asdict(markers) if markers else None,
        }

    def label(self, task: LabelTask) -> Shard:
        """Return one trace's shard, on the CPU.

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
        stored = hidden.dtype if options.store_dtype is None else parse_dtype(options.store_dtype)
        hidden = hidden.to(device="cpu", dtype=stored)
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
        """Return the tokenizer alone."""
        return load_tokenizer(self.source)
