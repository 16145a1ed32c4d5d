"""What a plugin needs of an engine: methods that it knows, settings that it supports, the predictor's model."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedConfig

from dynts.engines.settings import PluginSettings
from dynts.errors import UnsupportedError
from dynts.predictor.fingerprint import check_fingerprint
from dynts.predictor.model import ImportancePredictor


def check_signatures(signatures: Mapping[str, str], engine: str, fix: str) -> None:
    """Refuse an engine whose functions are not those that a plugin overrides or relies on.

    Args:
        signatures: dotted names of functions and methods, with their parameters.
        engine: its name and version, for the message.
        fix: what to do, likewise.

    Raises:
        UnsupportedError: names the function that has changed.
    """
    for name, expected in signatures.items():
        found = _engines_own(name)
        parameters = " ".join(inspect.signature(found).parameters) if found else "no such function"
        if parameters != expected:
            raise UnsupportedError(
                f"{name} of {engine} takes ({parameters}), the dynts plugin expects ({expected}): {fix}"
            )


def refuse(reasons: Mapping[str, object], instead: str = "") -> None:
    """Refuse what a plugin does not support.

    Args:
        reasons: what is not supported, and what to do, with whether that is the case.
        instead: what else to do.

    Raises:
        UnsupportedError: names the first that is the case.
    """
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError(f"dynts does not support {reason}{instead}")


def load_predictor(
    settings: PluginSettings, device: torch.device, config: PreTrainedConfig, embedding: torch.nn.Module
) -> ImportancePredictor:
    """Load the predictor beside an engine's model.

    Args:
        settings: the plugin's.
        device: of the model.
        config: the model's.
        embedding: the model's, of input tokens; where processes share it out, all of them are here at the same time.

    Raises:
        DyntsError: the predictor cannot be read, or was trained for another model.
    """
    predictor = ImportancePredictor.from_pretrained(settings.predictor).to(device)
    model = cast(Any, _Fingerprinted(config, embedding))
    check_fingerprint(predictor.config.fingerprint, model, predictor.config.base_model)
    return predictor


class _Fingerprinted:
    """An engine's model as `check_fingerprint` looks at it."""

    def __init__(self, config: PreTrainedConfig, embedding: torch.nn.Module) -> None:
        self.config = config
        self.embedding = embedding

    def get_input_embeddings(self) -> torch.nn.Module:
        """As in transformers."""
        return self.embedding


def _engines_own(name: str) -> Callable[..., Any] | None:
    """The engine's function of this name, where a class of the plugin may have taken its class's place."""
    place, attribute = name.rsplit(".", 1)
    try:
        owner = pkgutil.resolve_name(place)
    except (ImportError, AttributeError):
        return None
    for kind in getattr(owner, "__mro__", (owner,)):
        if attribute in vars(kind) and not getattr(kind, "__module__", "").startswith("dynts."):
            found = vars(kind)[attribute]
            return getattr(found, "__func__", found)
    return None
