"""What a checkpoint's generation config asks for beyond sampling: followed, overridden or refused.

`generate` itself follows penalties, suppressed tokens and lengths. Commands choose one token of each row at a time, so
they override other kinds of search, and say so; they make text of what comes, so they override what else it would
return.
"""

import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
    TypicalLogitsWarper,
)

from dynts.errors import UnsupportedError
from dynts.models import input_device

_SEARCH: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "use_mtp": False,
    "constraints": None,
    "force_words_ids": None,
    "token_healing": False,
    "top_h": None,
    "max_time": None,
}
"""Settings that commands override, and what they override them with."""
_OUTPUT = dict.fromkeys(
    ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits"), False
)
"""Settings that change nothing of the text. (`use_cache` is overridden by `dynts.compress`.)"""
_FACTORS = ("repetition_penalty", "encoder_repetition_penalty")
_COUNTS = ("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size")
"""Settings that generate() follows, and of which it finds out in the middle of a request that they are impossible."""

logger = logging.getLogger(__name__)


def check_checkpoint(model: PreTrainedModel) -> None:
    """Say in one line what commands override of the checkpoint's generation config, before anything is computed.

    Raises:
        UnsupportedError: it asks for what can neither be followed nor left out.
    """
    config = _generation_config(model)
    check_guidance(config)
    if not all(isinstance(text, str) and text for text in stop_strings(model)):
        raise UnsupportedError(
            f"the checkpoint's generation config has stop_strings={config.stop_strings!r}: each must be a text, not "
            "empty"
        )
    _check_numbers(model, config)
    if asked := _set(config, _SEARCH):
        say_once(
            f"dynts: the checkpoint's generation config asks for {_list(asked)}: overridden, each row is one sequence "
            "whose tokens are chosen one at a time"
        )


def _check_numbers(model: PreTrainedModel, config: GenerationConfig) -> None:
    for names, kinds, least in ((_FACTORS, int | float, "above 0"), (_COUNTS, int, "of 0 or more")):
        for name in names:
            value: Any = getattr(config, name, None)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or value < 0
                or (value == 0 and names is _FACTORS)
            ):
                raise UnsupportedError(
                    f"the checkpoint's generation config has {name}={value!r}: it must be a number {least}"
                )
    try:
        more_warpers(model)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(f"the checkpoint's generation config asks for impossible sampling: {error}") from error


def check_guidance(config: GenerationConfig) -> None:
    """Refuse classifier-free guidance, which reads every sequence again, into a cache of its own without a budget.

    Raises:
        UnsupportedError: the generation config asks for it.
    """
    if config.guidance_scale not in (None, 1):
        raise UnsupportedError(
            f"guidance_scale={config.guidance_scale} runs the model a second time with a cache that has no budget: set "
            "it to 1, in the call or in the checkpoint's generation_config.json"
        )


@contextmanager
def plain_search(model: PreTrainedModel) -> Iterator[None]:
    """Let generate() see, inside this context, a generation config without what commands override.

    Arguments of generate() would come too late: it looks at the checkpoint's settings for themselves first.
    """
    config = _generation_config(model)
    model.generation_config = _plain_config(model)
    try:
        yield
    finally:
        model.generation_config = config


def stop_criteria(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> StopStringCriteria | None:
    """Return what ends a row at one of the checkpoint's stop strings; None without any.

    Args:
        model: with the checkpoint's generation config.
        tokenizer: its tokenizer.

    Raises:
        UnsupportedError: transformers cannot look for texts with this tokenizer.
    """
    strings = stop_strings(model)
    try:
        return StopStringCriteria(tokenizer, list(strings)) if strings else None
    except ValueError as error:  # of words that are whole tokens, say: transformers tries each token behind "abcdef"
        raise UnsupportedError(
            f"the checkpoint's generation config has stop_strings={list(strings)}, which transformers cannot look for "
            f"with this tokenizer ({error}): take them out of generation_config.json"
        ) from error


def stop_strings(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the checkpoint's stop strings."""
    strings: Any = _generation_config(model).stop_strings or ()
    return (strings,) if isinstance(strings, str) else tuple(strings)


def more_warpers(model: PreTrainedModel) -> LogitsProcessorList:
    """Return warpers of those sampling settings that commands have no option for; they follow top-p, in this order."""
    config = _generation_config(model)
    warpers = LogitsProcessorList()
    if config.min_p is not None:
        warpers.append(MinPLogitsWarper(config.min_p))
    if config.typical_p is not None and config.typical_p < 1:
        warpers.append(TypicalLogitsWarper(config.typical_p))
    if config.epsilon_cutoff:
        warpers.append(EpsilonLogitsWarper(config.epsilon_cutoff))
    if config.eta_cutoff:
        warpers.append(EtaLogitsWarper(config.eta_cutoff, device=str(input_device(model))))
    return warpers


def row_processors(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> LogitsProcessorList:
    """Return what generate() would do to the logits of a sequence alone: penalties, suppressed tokens, lengths.

    Args:
        model: with the checkpoint's generation config.
        prompt: token ids.
        max_new_tokens: the most that may be generated.
    """
    device = input_device(model)
    config = _plain_config(model)
    for name in ("temperature", "top_p", "top_k", "stop_strings"):
        setattr(config, name, None)
    config.do_sample, config.max_length = False, len(prompt) + max_new_tokens
    if config.min_new_tokens:
        config.min_length = len(prompt) + config.min_new_tokens
    generator: Any = model
    generator._prepare_special_tokens(config, True, device=device)
    ids = torch.tensor([prompt], device=device)
    return cast(
        LogitsProcessorList,
        generator._get_logits_processor(
            config, ids.shape[1], ids, logits_processor=LogitsProcessorList(), device=device
        ),
    )


@functools.cache
def say_once(line: str) -> None:
    """Log a warning, once in a process."""
    logger.warning(line)


def _plain_config(model: PreTrainedModel) -> GenerationConfig:
    """Return a copy of the checkpoint's generation config without what commands override."""
    config, table = _generation_config(model), _SEARCH | _OUTPUT
    changed = copy.deepcopy(config)
    for name in _set(config, table):
        setattr(changed, name, table[name])
    changed.stop_strings = list(stop_strings(model)) or None  # transformers fails on an empty list
    return changed


def _generation_config(model: PreTrainedModel) -> GenerationConfig:
    assert model.generation_config is not None, "a model that can generate has one"
    return model.generation_config


def _set(config: GenerationConfig, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with another value than the plain one."""
    values = {name: getattr(config, name, None) for name in plain}
    return {name: value for name, value in values.items() if value is not None and value != plain[name]}


def _list(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())
