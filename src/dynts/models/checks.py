"""What must hold of a loaded model: all weights come from the checkpoint, special tokens have an embedding."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.errors import DyntsError

_SHOWN = 3


def check_weights(info: Mapping[str, Any], source: str) -> None:
    """Refuse a model of which transformers has made up weights, since the checkpoint lacks them.

    Args:
        info: from `from_pretrained(..., output_loading_info=True)`, where tied weights and buffers that are never saved
            do not count as missing.
        source: what the model is called.

    Raises:
        DyntsError: names weights that are missing, or that have another shape than the configuration says.
    """
    # a tied weight of another shape is reported as missing too
    shapes = {name: f"{name} ({list(found)}, not {list(wanted)})" for name, found, wanted in info["mismatched_keys"]}
    missing = sorted(set(info["missing_keys"]) - set(shapes))
    if missing:
        raise DyntsError(
            f"{source} lacks {_some(missing)}: weights of the model that its configuration describes; the checkpoint "
            "is incomplete, or of another model"
        )
    if shapes:
        raise DyntsError(
            f"weights of {source} have other shapes than its configuration says: {_some(sorted(shapes.values()))}"
        )


def check_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse special tokens that the model cannot read.

    Args:
        model: with the generation configuration that `generate` takes them from.
        tokenizer: that adds them to prompts and pads with them.
        source: what the model is called.

    Raises:
        DyntsError: names one that lies outside the embedding.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    for name, token in _special_tokens(model, tokenizer):
        if not isinstance(token, int) or not 0 <= token < rows:
            raise DyntsError(
                f"{name} of {source} is {token!r}, but the model has embeddings for tokens 0 to {rows - 1} only: take "
                "the tokenizer that belongs to these weights, or name another token in its tokenizer_config.json"
            )


def _special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    for attribute in tokenizer.SPECIAL_TOKENS_ATTRIBUTES:
        token = getattr(tokenizer, f"{attribute}_id")
        if token is not None:
            yield f"the tokenizer's {attribute}", token
    for attribute in ("bos_token_id", "eos_token_id", "pad_token_id"):
        tokens = getattr(model.generation_config, attribute)
        for token in tokens if isinstance(tokens, list) else [tokens]:
            if token is not None:
                yield f"the generation configuration's {attribute}", token


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
