"""A generate() call under a budget: what it will feed, and refusals of what a compressed cache cannot honour."""

import copy
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE, cache_in, cache_keyword
from dynts.decode.checkpoint import check_guidance
from dynts.errors import DyntsError, UnsupportedError

CHUNKS_GO_ON = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 21)
"""Whether transformers reads on in chunks (`prefill_chunk_size`) behind what a cache holds."""


class GenerateCall:
    """A call of `model.generate(inputs, **kwargs)`.

    Args:
        model: the model.
        inputs: the first positional argument, or None.
        kwargs: the others, by their names.

    Attributes:
        cache: that the call continues; None for a new one.

    Raises:
        UnsupportedError: names an option that a compressed cache cannot honour, and what to do instead.
    """

    def __init__(self, model: PreTrainedModel, inputs: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
        self.config = _checked_config(model, kwargs)
        self.kwargs = kwargs
        self.tokens: torch.Tensor | None = inputs if inputs is not None else kwargs.get("input_ids")
        self.embeds: torch.Tensor | None = kwargs.get("inputs_embeds")
        self.mask: torch.Tensor | None = kwargs.get("attention_mask")
        self.cache: BudgetCache | None = cache_in(kwargs)

    def new_columns(self, cache: BudgetCache, tokenizer: PreTrainedTokenizerBase | None = None) -> int:
        """Return how many tokens of each row, padding included, the call will feed before it generates.

        Args:
            cache: what it continues, or a new one.
            tokenizer: for messages.

        Raises:
            DyntsError: a continuation gives neither the whole conversation nor its whole attention mask, or the
                conversation is not the one in the cache.
            UnsupportedError: the continuation is to be read in chunks, which this transformers cannot do.
        """
        fed, mask = cache.occupancy.columns, self.mask
        main = self.embeds if self.embeds is not None else self.tokens
        if main is None:
            raise DyntsError("generate() under dynts needs input_ids or inputs_embeds")
        width: int = main.shape[1]
        if mask is not None and mask.ndim != 2:
            raise UnsupportedError(f"attention_mask must be 2D (1 for tokens, 0 for padding), got {mask.ndim}D")
        covered = width if mask is None else mask.shape[1]
        if fed and self.config.prefill_chunk_size is not None and not CHUNKS_GO_ON:
            raise UnsupportedError(
                f"transformers {transformers.__version__} begins again at the first token when it reads in chunks: "
                "continue this cache without prefill_chunk_size, or use transformers 5.21 or newer"
            )
        if covered == fed + width and fed:
            return width
        if covered != width:
            raise DyntsError(
                f"attention_mask covers {covered} tokens; expected {fed + width}: {fed} in the cache and {width} new "
                "ones"
            )
        if fed and self.embeds is None:
            self._check_same_conversation(main, cache, tokenizer)
        if width <= fed:
            raise DyntsError(
                f"the cache has seen {fed} tokens but the input has {width}: to continue a conversation pass all of it "
                "(the earlier sequences and the new turn), or an attention_mask that covers all of it"
            )
        return width - fed

    def new_tokens(self, columns: int) -> list[int]:
        """Return the tokens of each row among the last columns, padding excluded."""
        shown, main = self._shown(), self.tokens if self.embeds is None else self.embeds
        assert main is not None
        counts = [columns] * len(main) if shown is None else shown[:, -columns:].sum(dim=1).tolist()
        return [int(count) for count in counts for _ in range(self.config.num_return_sequences or 1)]

    def arguments(self, cache: BudgetCache) -> dict[str, Any]:
        """Return the keyword arguments with a cache, and without the default one's name, which a given one excludes."""
        arguments = {**self.kwargs, cache_keyword(self.kwargs): cache}
        if "cache_implementation" in arguments:
            arguments["cache_implementation"] = None
        config = arguments.get("generation_config")
        if config is not None and config.cache_implementation is not None:
            arguments["generation_config"] = copy.deepcopy(config)
            arguments["generation_config"].cache_implementation = None
        return arguments

    def _shown(self) -> torch.Tensor | None:
        """Return the attention mask that generate() will work with; None where all are tokens.

        Without one transformers takes pad tokens for padding, unless they end a sequence too.
        """
        pad, ends = self.config.pad_token_id, self.config.eos_token_id
        if self.mask is not None or self.embeds is not None or pad is None:
            return self.mask
        if pad in (ends if isinstance(ends, list) else [ends]):
            return None
        assert self.tokens is not None
        return self.tokens != pad

    def _check_same_conversation(
        self, ids: torch.Tensor, cache: BudgetCache, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """Refuse a whole conversation whose tokens are not those in the cache, as far as both go, padding aside.

        Args:
            ids: int64 [rows, columns].
            cache: what the conversation continues.
            tokenizer: for the message.

        Raises:
            DyntsError: says where they part, and what to pass instead.
        """
        width, shown = min(ids.shape[1], cache.occupancy.columns), self._shown()
        copies, rest = divmod(cache.batch, len(ids))
        if rest:
            return  # another number of rows is refused as such
        known, ids = cache.history.tokens()[:, :width], ids[:, :width].to(cache.device).repeat_interleave(copies, dim=0)
        other = (ids != known) & (known >= 0) & (cache.history.positions()[:, :width] >= 0)
        if shown is not None:
            other &= shown[:, :width].to(cache.device, torch.bool).repeat_interleave(copies, dim=0)
        at = int(torch.where(other.any(), other.flatten().to(torch.uint8).argmax(), -1))
        if at < 0:
            return
        row, column = divmod(at, width)

        def named(token: int) -> str:
            return str(token) if tokenizer is None else f"{token} ({tokenizer.decode([token])!r})"

        raise DyntsError(
            f"this is not the conversation in the cache: from token {column} of row {row} on they differ (counted from "
            f"0, padding included): {named(int(ids[row, column]))} here, {named(int(known[row, column]))} there. Chat "
            "templates drop or rewrite earlier turns, thinking above all: pass the sequences that generate() returned "
            "and the new turn after them, or the new turn alone with an attention_mask that covers the "
            f"{cache.occupancy.columns} tokens in the cache too, or start without this cache"
        )


def _checked_config(model: PreTrainedModel, kwargs: dict[str, Any]) -> GenerationConfig:
    """Return the generation config that generate() will work with, as far as dynts needs it.

    Args:
        model: the model.
        kwargs: keyword arguments of generate().

    Raises:
        UnsupportedError: names the option and what to do instead.
    """
    config = _resolve(model.generation_config, kwargs)
    mode = config.get_generation_mode(kwargs.get("assistant_model"))
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        own = _resolve(model.generation_config, {}).get_generation_mode() == mode
        where = "; the model's own generation_config asks for it" if own else ""
        raise UnsupportedError(
            f"generation mode {mode.value} is not supported under a budget: use greedy search or sampling "
            f"(num_beams=1, no assistant model, no prompt lookup){where}"
        )
    check_guidance(config)
    if kwargs.get("custom_generate") is not None:
        raise UnsupportedError("custom_generate is not supported under a budget: its loop may handle the cache itself")
    if "prepare_inputs_for_generation" in model.__dict__:
        raise UnsupportedError(
            "another library has replaced this model's prepare_inputs_for_generation, as PEFT's prompt learning does, "
            "and may bring keys that dynts does not know of: generate with the model as transformers loads it"
        )
    if config.use_cache is False:
        raise UnsupportedError("use_cache=False leaves nothing to compress: drop it")
    if config.cache_implementation not in (None, "dynamic"):
        raise UnsupportedError(
            f"cache_implementation={config.cache_implementation!r} is not supported under a budget: drop it"
        )
    cache = cache_in(kwargs)
    if cache is not None and not isinstance(cache, BudgetCache):
        raise UnsupportedError(
            f"{cache_keyword(kwargs)} of type {type(cache).__name__} cannot be compressed: start without a cache, "
            f"or continue with the {CACHE} of an earlier generate() call under dynts"
        )
    return config


def _resolve(defaults: GenerationConfig, kwargs: dict[str, Any]) -> GenerationConfig:
    """Return the generation config that generate() will work with, as far as the checks need it."""
    config = copy.deepcopy(defaults)
    given = kwargs.get("generation_config")
    if given is not None:
        config.update(**{name: value for name, value in given.to_dict().items() if value is not None})
    config.update(**{name: value for name, value in kwargs.items() if name in config.__dict__})
    return config
