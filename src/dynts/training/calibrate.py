"""Statistics of a model's queries for `triattention`, and whether its rotary embedding is the one that they are for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from dynts.errors import DyntsError, UnsupportedError
from dynts.methods.calibration import Calibration
from dynts.models import input_device
from dynts.models.attention import Softmax, check_shown, observed_attention
from dynts.models.shape import full_attention_layers, head_size
from dynts.predictor.fingerprint import fingerprint

_CHECKED, _SHIFT, _NEAR = 32, 1009, 0.1
"""Tokens that the rotary embedding is checked with, by how much they are moved, and the largest relative difference:
half precision stays below it, another embedding does not."""
_OF_LENGTH = ("dynamic", "longrope")
_REASON = "triattention needs queries and keys of every layer; choose another method"


@torch.no_grad()
def calibrate(
    model: PreTrainedModel, texts: Iterable[Sequence[int]], done: Callable[[], object] = lambda: None
) -> Calibration:
    """Return the statistics of a model's queries over texts, each read in one pass.

    Args:
        model: a causal language model with "sdpa" or "eager" attention.
        texts: their token ids.
        done: called after each text.

    Raises:
        DyntsError: there are no texts.
        UnsupportedError: the model turns its queries and keys otherwise than triattention takes for granted.
    """
    layers = full_attention_layers(model.config.get_text_config())
    frequencies, scaling = _rotary(model)
    sums = _Sums(frequencies.double(), scaling, dict.fromkeys(layers))
    with observed_attention(model):
        for text in texts:
            if not sums.count:
                _check_rotary(model, text, layers, frequencies.double())
            _read(model, text, sums)
            check_shown(model, sums.seen, layers, _REASON)
            sums.seen.clear()
            sums.count += len(text)
            done()
    if not sums.count:
        raise DyntsError("there is no text to calibrate with: give at least one trace")
    mean, length = (torch.stack(parts) / sums.count for parts in zip(*filter(None, sums.found.values()), strict=True))
    return Calibration(
        mean.to(torch.complex64), length.float(), frequencies, scaling, model.name_or_path or "", fingerprint(model)
    )


def turn(states: torch.Tensor, phases: torch.Tensor) -> torch.Tensor:
    """Turn pairs of dimensions.

    Args:
        states: [..., head size], the halves of which are the real and the imaginary parts.
        phases: float64 [..., pairs], in radians.

    Returns:
        complex64 [..., pairs], on the device of the states.
    """
    turned = torch.polar(torch.ones_like(phases), phases).to(torch.complex64).to(states.device)
    real, imaginary = states.float().chunk(2, dim=-1)
    return torch.complex(real, imaginary) * turned


@dataclass(slots=True)
class _Sums:
    """Observer: sums over tokens of queries turned back, and of their lengths, by layer; on the CPU."""

    frequencies: torch.Tensor
    scaling: float
    found: dict[int, tuple[torch.Tensor, torch.Tensor] | None]
    count: int = 0
    seen: list[int] = field(default_factory=list)

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> None:
        if layer not in self.found:
            return
        self.seen.append(layer)
        positions = torch.arange(query.shape[2], dtype=torch.float64)
        pairs = turn(query[0] / self.scaling, -positions[:, None] * self.frequencies)
        added = pairs.sum(dim=1).cpu().to(torch.complex128), pairs.abs().sum(dim=1).cpu().double()
        before = self.found[layer]
        self.found[layer] = added if before is None else (before[0] + added[0], before[1] + added[1])


@dataclass(slots=True)
class _States:
    """Observer: queries and keys of a pass, by layer."""

    found: dict[int, torch.Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, softmax: Softmax) -> None:
        self.found[layer] = torch.cat([query, key], dim=1)


def _rotary(model: PreTrainedModel) -> tuple[torch.Tensor, float]:
    """Return the frequencies of a rotary embedding on the CPU, float32 [pairs], and its scaling.

    Raises:
        UnsupportedError: the model has none, several, one that depends on the length, or one for a part of a head.
    """
    name, rotary = type(model).__name__, getattr(model.get_decoder(), "rotary_emb", None)
    frequencies = getattr(rotary, "inv_freq", None)
    if not isinstance(frequencies, torch.Tensor):
        raise UnsupportedError(f"{name} has not one rotary embedding for all layers: {_REASON}")
    if (kind := getattr(rotary, "rope_type", "default")) in _OF_LENGTH:
        raise UnsupportedError(f"the rotary embedding of {name} ({kind}) changes with the length of a text: {_REASON}")
    size = head_size(model.config.get_text_config())
    if 2 * len(frequencies) != size:
        raise UnsupportedError(
            f"{name} turns {2 * len(frequencies)} of the {size} dimensions of its heads: triattention is defined for "
            "all of them; choose another method"
        )
    return frequencies.float().cpu(), float(getattr(rotary, "attention_scaling", 1.0))


def _check_rotary(
    model: PreTrainedModel, text: Sequence[int], layers: Sequence[int], frequencies: torch.Tensor
) -> None:
    """Refuse a model whose queries and keys, read at later positions, are not those of before turned on.

    Raises:
        UnsupportedError: names the layers.
    """
    passes = []
    for first in (0, _SHIFT):
        states = _States()
        _read(model, text[:_CHECKED], states, first)
        check_shown(model, [layer for layer in states.found if layer in layers], layers, _REASON)
        passes.append(states.found)
    wrong = []
    for layer in layers:
        expected = turn(passes[0][layer], _SHIFT * frequencies)
        found = turn(passes[1][layer], torch.zeros_like(frequencies))
        if not (found - expected).abs().norm() <= _NEAR * expected.abs().norm():
            wrong.append(layer)
    if wrong:
        raise UnsupportedError(
            f"layers {', '.join(map(str, wrong))} of {type(model).__name__} do not turn queries and keys as Llama "
            "does: triattention is defined for that; choose another method"
        )


def _read(model: PreTrainedModel, text: Sequence[int], observer: Any, first: int = 0) -> None:
    """Let a model read a text from a position on."""
    ids = torch.tensor([list(text)], device=input_device(model))
    positions = torch.arange(first, first + len(text), device=ids.device)[None]
    model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False, attention_observer=observer)
