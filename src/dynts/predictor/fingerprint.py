"""Tell models apart by what survives another dtype, a quantisation or a fine-tune."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from dynts.errors import DyntsError

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers")
_SAMPLES = 8
_MIN_SIMILARITY = 0.9


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Shape of a model and a sample of its input embeddings, for JSON.

    The sample is 8 x 8 values from evenly spaced rows and columns; it is left out while the weights have no data (meta
    device).
    """
    config = model.config.get_text_config()
    found: dict[str, Any] = {name: getattr(config, name) for name in _SHAPE}
    found["vocab_size"] = config.vocab_size
    sample = _embedding_sample(model, config.vocab_size)
    if sample is not None:
        found["embedding_sample"] = sample.tolist()
    return found


def check_fingerprint(
    recorded: Mapping[str, Any],
    model: PreTrainedModel,
    base_model: str,
    *,
    made: str = "the predictor was trained",
    remedy: str = "train a predictor for this one",
) -> None:
    """Refuse a model that is not the recorded one. A resized vocabulary passes, for fine-tunes add tokens.

    Args:
        recorded: the predictor's.
        model: the model.
        base_model: name of the recorded one, for the message.
        made: what was made for the recorded one, for the message.
        remedy: what to do where it is another, likewise.

    Raises:
        DyntsError: names the field that differs.
    """
    config = model.config.get_text_config()
    fix = f"use {base_model or 'the model it was made for'}, or {remedy}"
    for name in _SHAPE:
        if name in recorded and recorded[name] != getattr(config, name):
            raise DyntsError(
                f"{made} for a model with {name} {recorded[name]!r}, this model has {getattr(config, name)!r}: {fix}"
            )
    if "embedding_sample" not in recorded:
        return
    sample = _embedding_sample(model, recorded["vocab_size"])
    if sample is None:
        return
    expected = torch.tensor(recorded["embedding_sample"])
    similarity = torch.cosine_similarity(sample.flatten(), expected.flatten(), dim=0).item()
    if not similarity > _MIN_SIMILARITY:
        raise DyntsError(
            f"{made} for another model of the same shape (cosine similarity of the embeddings "
            f"{similarity:.2f}, at least {_MIN_SIMILARITY} expected): {fix}"
        )


def _embedding_sample(model: PreTrainedModel, vocab_size: int) -> torch.Tensor | None:
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    if weight.is_meta or vocab_size > model.config.get_text_config().vocab_size:
        return None
    rows, columns = (torch.arange(_SAMPLES) * size // _SAMPLES for size in (vocab_size, weight.shape[1]))
    rows = rows.to(weight.device)
    if vocab_size > weight.shape[0]:
        # the rows are shared out among an engine's processes, all of which look these up at the same time
        sample = embedding(rows)
    else:
        if isinstance(weight, DTensor):  # shared out among the processes of tensor parallelism
            weight = weight.full_tensor()
        # looked up as the model does it: quantised weights know no other indexing
        sample = torch.nn.functional.embedding(rows, weight.detach())
    return sample.detach()[:, columns.to(weight.device)].float().cpu()
