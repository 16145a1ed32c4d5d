"""Are decode steps under a budget exact on this device?

Small random models read a padded batch and then given tokens, whatever they would choose themselves. Their logits at
each step are compared with one forward pass in float32 on the same weights, without a cache, under a mask that hides
every token from the moment in which it was evicted.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dynts.cache.interface import CACHE
from dynts.config import CompressionConfig
from dynts.decode.checkpoint import say_once
from dynts.decode.compress import compress
from dynts.decode.recorded import RECORDERS, forget_steps
from dynts.methods import METHODS, Method, SepLLM
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from gpu_sections.bench import Bench, Case, Row, attempt

KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma3_text": {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
    },
}
"""Settings of each kind of model, beside those of all."""
_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    # with smaller weights evictions would hardly be felt
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_SCHEDULE = CompressionConfig(budget=36, local_window=12, retention_ratio=0.4)
_PADDING, _PROMPT, _STEPS = (5, 0, 9), 14, 45
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.02}
"""Largest error that rounding explains."""


def parity(bench: Bench) -> Iterator[Case]:
    """Every method on small random models, three rows of different lengths, beside one forward pass in float32.

    "error" is the largest of a row's logits at a step, relative to their norm; "felt" is how far off they would be at
    least if nothing were evicted. With `compile=True` one method stands for all, since the compiled step is the same.
    """
    dtypes = dict.fromkeys((torch.float32, bench.sizes.dtype))
    # sliding-window layers are not compiled
    whole = [kind for kind, settings in KINDS.items() if "sliding_window" not in settings]
    modes = [*product((None,), KINDS, dtypes, ("sdpa",)), (None, "llama", torch.float16, "eager")]
    modes += product((True,), whole, dtypes, ("sdpa",)) if bench.compile else ()
    for compile, kind, dtype, implementation in [*modes, *product((False,), KINDS, dtypes, ("sdpa",))]:
        case = {"model": kind, "dtype": str(dtype).removeprefix("torch."), "attention": implementation}
        yield case | {"steps": _MODES[compile]}, partial(_parity, bench, kind, dtype, implementation, compile)


_MODES = {None: "default", False: "compile=False", True: "compile=True"}


def _parity(bench: Bench, kind: str, dtype: torch.dtype, implementation: str, compile: bool | None) -> Row:
    model = small_model(kind, dtype, implementation, bench.device)
    chosen = [method for method in methods() if method.name == "dynts" or not compile]
    found = {method.name: attempt(partial(compare, model, method, compile)) for method in chosen}
    done = {name: result for name, result in found.items() if "failed" not in result}
    errors = {name: result["error"] for name, result in done.items()}
    return {
        "methods": len(found),
        "error": max(errors.values(), default=None),
        "felt": min((result["felt"] for result in done.values() if result["compactions"]), default=None),
        "within rounding": len(done) == len(found) and max(errors.values()) < LIMITS[dtype],
        "recorded": sum(result["recordings"] > 0 for result in done.values()),
        "said": "; ".join(sorted({line for result in done.values() for line in result["said"]})),
        "failed": "; ".join(f"{name}: {result['failed']}" for name, result in found.items() if name not in done),
        "of each method": found,
    }


def methods() -> list[Method]:
    """Every method with its default settings."""
    return [SepLLM(separators=(10, 20, 30)) if kind is SepLLM else kind() for kind in METHODS.values()]


def small_model(kind: str, dtype: torch.dtype, attention: str, device: torch.device) -> PreTrainedModel:
    """A random model.

    Args:
        kind: of `KINDS`.
        dtype: of its weights.
        attention: implementation, "sdpa" or "eager".
        device: where it is.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_COMMON, **KINDS[kind]})
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval().to(device)


def compare(model: PreTrainedModel, method: Method, compile: bool | None) -> dict[str, Any]:
    """Decode under a budget and compare with one forward pass.

    Args:
        model: a small one.
        method: by which it decodes.
        compile: how its steps run, see `dynts.compress`.

    Returns:
        The largest error of a row's logits at a step, relative to their norm ("error"), how far they would be off if
        nothing were evicted ("felt"), the number of compactions, and how the steps were run.
    """
    source = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, model.config.vocab_size, (len(_PADDING), _PROMPT + _STEPS), generator=source)
    with noted(model.device) as steps:
        ours, kept = _decode(model, method, compile, tokens)
    forget_steps(model)
    exact = small_model(model.config.model_type, torch.float32, "sdpa", model.device)
    exact.load_state_dict(model.state_dict())
    expected, causal = _one_forward(exact, tokens, kept), _one_forward(exact, tokens, [])

    def apart(logits: torch.Tensor) -> float:
        return ((logits - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()

    return {
        "error": apart(ours),
        "felt": apart(causal),
        "compactions": len(kept),
        "recordings": steps.recordings,
        "replays": steps.replays,
        "said": steps.said,
    }


@dataclass
class Noted:
    """How decode steps were run.

    Attributes:
        recordings: how many were recorded.
        replays: how often one of these was replayed, once more than there are steps if all were.
        said: what dynts has logged meanwhile, such as why steps are plain.
    """

    recordings: int = 0
    replays: int = 0
    said: list[str] = field(default_factory=list)


@contextmanager
def noted(device: torch.device) -> Iterator[Noted]:
    """Note how decode steps are run inside this context, on devices of this type."""
    found, record, log = Noted(), RECORDERS.get(device.type), logging.getLogger("dynts")
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.said.append(record.getMessage())  # type: ignore[method-assign]

    def counted(run: Any, running: Any) -> Any:
        assert record is not None
        replay = record(run, running)
        found.recordings += 1

        def counted_replay(running: Any) -> Any:
            found.replays += 1
            return replay(running)

        return counted_replay

    say_once.cache_clear()  # each case is to say it anew
    log.addHandler(handler)
    if record is not None:
        RECORDERS[device.type] = counted
    try:
        yield found
    finally:
        log.removeHandler(handler)
        if record is not None:
            RECORDERS[device.type] = record


@torch.no_grad()
def _decode(
    model: PreTrainedModel, method: Method, compile: bool | None, tokens: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logits [rows, steps, vocabulary] under a budget, and the positions that each compaction kept."""
    torch.manual_seed(2)
    config = PredictorConfig(hidden_size=model.config.hidden_size, all_tokens=True)
    predictor = ImportancePredictor(config).eval() if method.needs_predictor else None
    ids = tokens.to(model.device)
    mask = (torch.arange(ids.shape[1]) >= torch.tensor(_PADDING)[:, None]).long().to(model.device)
    logits = []
    with compress(model, method, _SCHEDULE, predictor, record=True, compile=compile) as session:
        cache = session.new_cache()
        for end in range(_PROMPT, ids.shape[1] + 1):
            new = ids[:, :end] if end == _PROMPT else ids[:, end - 1 : end]
            output = cast(Any, model)(input_ids=new, attention_mask=mask[:, :end], **{CACHE: cache}, use_cache=True)
            logits.append(output.logits[:, -1].float().cpu())
    return torch.stack(logits, dim=1), [positions.cpu() for positions in session.kept_positions]


@torch.no_grad()
def _one_forward(exact: PreTrainedModel, tokens: torch.Tensor, kept: list[torch.Tensor]) -> torch.Tensor:
    """Return the same logits by one forward pass a row, without padding, given what each compaction kept."""
    logits = []
    for row, padding in enumerate(_PADDING):
        ids = tokens[row, padding:]
        at = torch.arange(len(ids))
        # the first token that does not see this one any more
        evicted = torch.full_like(at, len(ids))
        for positions in kept:
            alive = positions[row][positions[row] >= 0]
            seen = int(alive.max()) + 1
            gone = ~torch.isin(at, alive) & (at < seen)
            evicted[gone] = evicted[gone].clamp(max=seen)
        near = at[:, None] - at
        visible = {"full_attention": (near >= 0) & (at[:, None] < evicted)}
        if window := getattr(exact.config, "sliding_window", None):
            visible["sliding_attention"] = (near >= 0) & (near < window)
        masks = {name: mask[None, None].to(exact.device) for name, mask in visible.items()}
        mask = masks if "sliding_attention" in masks else masks["full_attention"]
        output = cast(Any, exact)(input_ids=ids[None].to(exact.device), attention_mask=mask, use_cache=False)
        logits.append(output.logits[0, _PROMPT - 1 - padding :].float().cpu())
    return torch.stack(logits)
