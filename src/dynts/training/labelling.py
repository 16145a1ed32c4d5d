"""Label a file of traces into a folder of shards, resumably."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts import __version__
from dynts.cache.architecture import full_attention_layers
from dynts.errors import DyntsError
from dynts.markers import think_markers
from dynts.predictor.fingerprint import fingerprint
from dynts.training.filters import MAX_TOKENS, Selected, select_traces
from dynts.training.labels import FUTURE_WINDOW, LABELS, check_labels, label_trace
from dynts.training.shards import Shard, ShardFolder
from dynts.training.traces import question_key, read_traces

Progress = Callable[[int, int], None]
"""Called with the number of traces done and their total."""


def label_traces(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    traces: str | Path,
    out: str | Path,
    *,
    name: str = "",
    labels: Sequence[str] = LABELS,
    future_window: int = FUTURE_WINDOW,
    max_tokens: int = MAX_TOKENS,
    keep_incorrect: bool = False,
    limit: int | None = None,
    tokens_per_trace: int | None = None,
    store_dtype: torch.dtype | None = None,
    seed: int = 0,
    chunk: int = 128,
    progress: Progress | None = None,
) -> ShardFolder:
    """Label the fit traces of a file. The same call on the same folder continues where the last one stopped.

    Args:
        model: the base model of the predictor, on any device or several.
        tokenizer: its tokenizer.
        traces: JSON Lines, see `dynts.training.traces`.
        out: the folder of shards.
        name: the model's name in the manifest; its `name_or_path` if empty.
        labels: which of "answer" and "future".
        future_window: see `label_trace`.
        max_tokens: longer traces are dropped.
        keep_incorrect: keep traces whose answer is wrong or cannot be graded.
        limit: label the first fit traces only, this many.
        tokens_per_trace: store the hidden states of this many random thinking tokens of a trace; None stores all.
        store_dtype: dtype of the stored hidden states; None keeps the model's.
        seed: of the choice of tokens.
        chunk: attention rows held at a time, see `label_trace`.
        progress: called after each trace.

    Raises:
        DyntsError: a bad setting or file, a folder with other settings, a full disk.
    """
    check_labels(labels, future_window)
    full_attention_layers(model.config.get_text_config())
    for option, value in (("limit", limit), ("tokens_per_trace", tokens_per_trace), ("chunk", chunk)):
        if value is not None and value < 1:
            raise DyntsError(f"{option} must be at least 1, got {value}")
    candidates = read_traces(traces)
    selected, dropped = select_traces(candidates, tokenizer, max_tokens=max_tokens, keep_incorrect=keep_incorrect)
    selected = selected[:limit]
    place = {trace.id: index for index, trace in enumerate(candidates)}
    markers = think_markers(tokenizer)
    settings = {
        "model": name or model.name_or_path,
        "fingerprint": fingerprint(model),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "store_dtype": str(store_dtype or model.dtype).removeprefix("torch."),
        "labels": list(labels),
        "future_window": future_window if "future" in labels else None,
        "max_tokens": max_tokens,
        "keep_incorrect": keep_incorrect,
        "limit": limit,
        "tokens_per_trace": tokens_per_trace,
        "seed": seed if tokens_per_trace else None,
        "traces_sha256": hashlib.sha256(Path(traces).read_bytes()).hexdigest(),
        "think_markers": asdict(markers) if markers else None,
    }
    facts = {
        "traces_file": Path(traces).name,
        "traces": len(candidates),
        "dropped": dropped,
        "indices": [place[chosen.trace.id] for chosen in selected],
        "versions": {
            "dynts": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    folder = ShardFolder.create(out, settings, facts)
    for done, (index, chosen) in enumerate(zip(folder.indices, selected, strict=True), start=1):
        if not folder.is_whole(index):
            shard = _label(model, chosen, labels, chunk, future_window)
            shard = _thin(shard, tokens_per_trace, store_dtype, seed + index)
            if not shard.hidden.isfinite().all():
                raise DyntsError(
                    f"the hidden states of trace {chosen.trace.id!r} are not finite, computed in {model.dtype} and "
                    f"stored in {shard.hidden.dtype}: choose other dtypes, such as bfloat16"
                )
            folder.write(index, shard)
        if progress is not None:
            progress(done, len(selected))
    return folder


def _label(model: PreTrainedModel, chosen: Selected, labels: Sequence[str], chunk: int, future_window: int) -> Shard:
    tokens = chosen.tokens
    labelled = label_trace(model, tokens, labels, chunk=chunk, future_window=future_window)
    info: dict[str, Any] = {
        **chosen.trace.columns,
        "id": chosen.trace.id,
        "question": question_key(chosen.trace.question),
        "correct": str(chosen.correct).lower(),
    }
    return Shard(
        hidden=labelled.hidden,
        rows=torch.arange(len(labelled.hidden)),
        ids=torch.tensor(tokens.ids[tokens.question_end : tokens.thinking_end]),
        labels=labelled.labels,
        info=info,
    )


def _thin(shard: Shard, tokens: int | None, dtype: torch.dtype | None, seed: int) -> Shard:
    """Fewer stored hidden states; the labels stay whole, because transforms look at the whole trace."""
    rows = shard.rows
    if tokens is not None:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:tokens]
        rows = rows[chosen.sort().values]
    hidden = shard.hidden[rows.to(shard.hidden.device)].to(dtype=dtype or shard.hidden.dtype)
    return Shard(hidden, rows, shard.ids, shard.labels, shard.info)
