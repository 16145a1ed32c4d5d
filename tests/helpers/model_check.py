"""What dynts does with one type of model: refuses it by name, or decodes it exactly, and by which methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

import dynts
from against_reference import STATES_TOLERANCE, check_row
from decoding import TOLERANCE, Talk, padded, random_predictor, random_tokens
from dynts.errors import UnsupportedError
from dynts.methods import METHODS, Method
from dynts.models.shape import full_attention_layers, keeps_states, kv_heads
from dynts.predictor.model import ImportancePredictor
from every_model import tiny_model_of
from method_table import named
from reference import ReferenceRun, Turn, reference_generate

CONFIG = dynts.CompressionConfig(budget=20, local_window=4, retention_ratio=0.4)
NEW_TOKENS = 26
CALIBRATED = ("triattention",)
"""Methods that need a calibration of the model."""
LONG, SHORT = random_tokens(7, 5), random_tokens(4, 6)
"""Prompts, after which a row evicts two or three times."""


@dataclass
class Found:
    """What came of a type of model.

    Attributes:
        reason: why dynts refuses it, without the name of its class; None if it decodes.
        layers: kinds of its layers.
        methods: by which it decodes.
        native: those of them that can keep a set of tokens for each KV head.
        padded: whether rows of different lengths decode together.
        fixed: whether its decode steps can have one shape, as compile=True needs it.
    """

    reason: str | None = None
    layers: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    native: list[str] = field(default_factory=list)
    padded: bool = False
    fixed: bool = False


def check(model_type: str) -> Found:
    """Decode a tiny model of a type, and compare it with the reference wherever dynts does not refuse.

    Raises:
        AssertionError: what dynts accepted is not exact.
    """
    model = tiny_model_of(model_type)
    if reason := _refused(model, "window"):
        return Found(reason.removeprefix(type(model).__name__).strip())
    shared, native = _accepted(model, native=False), _accepted(model, native=True)
    looking = ("h2o", "h2o" in native) if "h2o" in shared else ("dynts", "dynts" in native)
    for name, own_heads in {("dynts", False), looking, *([("rkv", False)] if "rkv" in shared else [])}:
        _compare(model, name, [LONG], native=own_heads)
    is_padded, is_fixed = not _refused(model, "window", rows=[SHORT, LONG]), not _refused(model, "window", compile=True)
    if is_padded:
        _compare(model, "window", [SHORT, LONG])
    if is_fixed:
        _compare(model, "window", [SHORT, LONG] if is_padded else [LONG], compile=True)
    return Found(None, _kinds_of_layers(model), shared, native, is_padded, is_fixed)


def _accepted(model: PreTrainedModel, native: bool) -> list[str]:
    """The methods that dynts does not refuse. Those that look at the same are refused alike: one of them is tried."""
    methods = [name for name in METHODS if name not in CALIBRATED and (not native or _has_granularity(name))]
    looks = {name: (METHODS[name].observes_attention, METHODS[name].reads_cache) for name in methods}
    tried = {look: not _refused(model, name, native) for name, look in reversed(looks.items())}
    return [name for name, look in looks.items() if tried[look]]


def _has_granularity(name: str) -> bool:
    return "granularity" in METHODS[name].__dataclass_fields__


def _method(name: str, native: bool) -> Method:
    if not _has_granularity(name):
        return named(name)
    return METHODS[name](granularity="native" if native else "shared")


def _predictor(model: PreTrainedModel, native: bool) -> ImportancePredictor:
    size = int(model.config.hidden_size)
    if not native:
        return random_predictor(size)
    return random_predictor(size, native=(len(full_attention_layers(model.config)), kv_heads(model.config)))


def _refused(
    model: PreTrainedModel, name: str, native: bool = False, rows: list[list[int]] | None = None, compile: bool = False
) -> str | None:
    """Why dynts refuses it, at the latest once it has seen a prompt; None if it does not."""
    try:
        _decode(model, name, rows or [LONG], 1, native, compile)
    except UnsupportedError as error:
        return str(error)
    return None


def _decode(
    model: PreTrainedModel, name: str, rows: list[list[int]], new_tokens: int, native: bool, compile: bool
) -> Talk:
    batch = padded(*rows)
    method = _method(name, native)
    predictor = _predictor(model, native) if method.needs_predictor else None
    with dynts.compress(model, method, CONFIG, predictor, record=True, compile=compile or None) as session:
        out = model.generate(
            **batch, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    return Talk([new.tolist()], [torch.stack(out.logits, dim=1)], session)


def _compare(
    model: PreTrainedModel, name: str, rows: list[list[int]], native: bool = False, compile: bool = False
) -> None:
    """Each row's logits and survivors are those of the reference."""
    with torch.compiler.set_stance("force_eager"):  # what the compiler makes of a step is no question of the model
        talk = _decode(model, name, rows, NEW_TOKENS, native, compile)
    options: dict[str, Any] = {"granularity": "native"} if native else {}
    if METHODS[name].needs_predictor:
        options["predictor"] = _scores_of(_predictor(model, native)) if native else _predictor(model, native)
    for row, prompt in enumerate(rows):
        run = reference_generate(
            model,
            [Turn(prompt, NEW_TOKENS)],
            method=name,
            budget=CONFIG.budget,
            local_window=CONFIG.local_window,
            retention_ratio=CONFIG.retention_ratio,
            forced=[talk.tokens[0][row]],
            **options,
        )
        _check_reference(model, prompt, run)
        if native:  # a model that repeats keys before it attends shows more heads than it caches
            run.kept_positions = [kept[:, : kv_heads(model.config)] for kept in run.kept_positions]
        check_row(talk, row, run, STATES_TOLERANCE if keeps_states(model.config) else TOLERANCE)


def _scores_of(predictor: ImportancePredictor) -> Any:
    """By the definition of the network: [tokens, layers, KV heads]."""
    first, second, third = predictor.parameters()
    softplus, config = torch.nn.functional.softplus, predictor.config

    def scores(hidden: Tensor) -> Tensor:
        flat = softplus(softplus(softplus(hidden @ first.T) @ second.T) @ third.T)
        return flat.view(len(hidden), config.layers, config.kv_heads).repeat(1, 1, 4)

    return scores


@torch.no_grad()
def _check_reference(model: PreTrainedModel, prompt: list[int], run: ReferenceRun) -> None:
    """The reference is this model until it evicts for the first time, and feels it from then on."""
    (tokens,), (logits,) = run.tokens, run.logits
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    own = model(ids, position_ids=torch.arange(ids.shape[1])[None]).logits[0, len(prompt) - 1 :]
    (step, *_), *others = run.compactions
    assert others, "two compactions"
    differences = (own - logits).abs().amax(dim=-1)
    assert differences[: step + 1].max() < TOLERANCE, "the reference computes another model"
    assert differences[step + 1 :].max() > 100 * TOLERANCE, "a cache that evicts has to be felt"


def _kinds_of_layers(model: PreTrainedModel) -> list[str]:
    """Kinds of layers, each once, in their order."""
    config = model.config
    kinds = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) is DynamicSlidingWindowLayer:
            kinds.append("sliding")
        elif type(layer) is DynamicLayer:
            kinds.append("full, compressed (MLA)" if hasattr(config, "kv_lora_rank") else "full")
        else:
            kinds.append(config.layer_types[index].removesuffix("_attention"))
    return list(dict.fromkeys(kinds))
