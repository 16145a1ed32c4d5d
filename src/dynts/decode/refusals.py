"""What dynts cannot do exactly, refused before anything is computed."""

import copy
import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE, cache_in, cache_keyword
from dynts.decode.checkpoint import check_guidance
from dynts.errors import DyntsError, UnsupportedError
from dynts.methods import METHODS, Method
from dynts.models.attention import OBSERVABLE, check_shown, implementation_of
from dynts.models.shape import full_attention_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
CHUNKS_GO_ON = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 21)
"""Whether transformers reads on in chunks (`prefill_chunk_size`) behind what a cache holds."""


def without_wrapper(model: Any) -> Any:
    """The transformers model in a wrapper of PEFT, whose adapters are part of its layers; any other model as it is.

    Raises:
        UnsupportedError: the adapter is no part of the layers, but tokens that nobody wrote.
    """
    peft: Any = sys.modules.get("peft")  # it has been imported if the model is one of its own
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    adapter = model.active_peft_config
    if adapter.is_prompt_learning or adapter.is_adaption_prompt:
        raise UnsupportedError(
            f"PEFT's {adapter.peft_type.value} brings keys or embeddings that are no tokens, which dynts cannot place: "
            "use an adapter of the weights, such as LoRA"
        )
    return model.get_base_model()


def check_training(model: PreTrainedModel) -> None:
    """Refuse a forward pass in which transformers may drop the cache.

    Raises:
        UnsupportedError: the model is being trained with gradient checkpointing.
    """
    # transformers' own property has a name that changes with its version
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UnsupportedError(
            "gradient checkpointing drops the cache while a model is in training mode: call model.eval() before generating, "
            "and model.train() afterwards"
        )


def check_model(model: PreTrainedModel, method: Method) -> None:
    """Refuse models whose decoding cannot be compressed exactly.

    Raises:
        UnsupportedError: names the reason.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise UnsupportedError(f"{name} is not a transformers model with generate(): load it with AutoModelForCausalLM")
    if model.config.is_encoder_decoder:
        raise UnsupportedError(f"{name} is an encoder-decoder model: dynts compresses decoder-only models")
    if model.config.get_text_config() is not model.config:
        raise UnsupportedError(f"{name} is a multimodal model: load its text decoder as a causal language model")
    if not model._supports_attention_backend:
        raise UnsupportedError(f"{name} does not use transformers' attention interface, so its masks are its own")
    parameters = inspect.signature(type(model.get_decoder()).forward).parameters
    if "position_ids" not in parameters or CACHE not in parameters:
        raise UnsupportedError(f"{name} takes no position_ids and {CACHE}: evicted tokens would shift positions")
    full_attention_layers(model.config)
    implementation = implementation_of(model)
    if implementation not in (*OBSERVABLE, *FLASH):
        raise UnsupportedError(
            f"attention implementation {implementation!r} is not supported: load the model with "
            f"attn_implementation= one of {', '.join((*OBSERVABLE, *FLASH))}"
        )
    if method.observes_attention and implementation not in OBSERVABLE:
        raise UnsupportedError(
            f"method {type(method).__name__} looks at queries and keys, which {implementation} does not show: "
            f"load the model with attn_implementation= one of {', '.join(OBSERVABLE)}"
        )


def check_first_pass(model: PreTrainedModel, cache: BudgetCache, shown: list[tuple[int, torch.Size]]) -> None:
    """Refuse what only a forward pass tells: what the layers cache, and what they attend to.

    Args:
        model: the model.
        cache: after its first forward pass, not committed yet.
        shown: full-attention layers whose attention was observed, with the shapes of their keys.

    Raises:
        UnsupportedError: names the model, the layers and what works.
    """
    name, method = type(model).__name__, cache.method
    cached = dict(zip(cache.full_layers, cache.budget_layers, strict=True))
    if empty := [layer for layer, slots in cached.items() if not slots.is_initialized]:
        raise UnsupportedError(
            f"layers {', '.join(map(str, empty))} of {name} cached nothing: the model does not use the cache that it is given"
        )
    if cache.native and any(slots.keys.shape[1] != method.kv_heads for slots in cached.values()):
        heads = sorted({slots.keys.shape[1] for slots in cached.values()})
        raise UnsupportedError(
            f"the layers of {name} cache keys of {', '.join(map(str, heads))} heads and not of {method.kv_heads}: "
            "native granularity has no set of tokens for each KV head there; use granularity 'shared'"
        )
    if not method.observes_attention:
        return
    # a predictor needs labels, which are made of attention weights too
    others = [each for each, kind in METHODS.items() if not kind.observes_attention and not kind.needs_predictor]
    check_shown(model, [layer for layer, _ in shown], list(cached), f"choose one of the methods {', '.join(others)}")
    if method.reads_keys and any(cached[layer].keys.shape[1::2] != keys[1::2] for layer, keys in shown):
        others = [each for each, kind in METHODS.items() if not kind.reads_keys]
        raise UnsupportedError(
            f"{name} caches compressed keys and expands them in every step, so method {type(method).__name__} cannot compute "
            f"attention from what is cached: choose one of the methods {', '.join(others)}"
        )


def check_compile(model: PreTrainedModel, method: Method) -> None:
    """Refuse what cannot be decoded at one fixed shape.

    Raises:
        UnsupportedError: names the reason.
    """
    if not method.evicts:
        raise UnsupportedError("without a budget the cache has no fixed size: method 'full' cannot be compiled")
    if method.observes_attention:
        raise UnsupportedError(
            f"method {type(method).__name__} looks at queries and keys as they come, which a compiled step does not show: "
            "drop compile=True"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedError("offloaded weights come and go, which a compiled step cannot follow: drop compile=True")
    if len(full_attention_layers(model.config)) < model.config.num_hidden_layers:
        raise UnsupportedError("sliding-window layers change their shape as they grow: drop compile=True")
    implementation = implementation_of(model)
    if implementation not in OBSERVABLE:
        raise UnsupportedError(
            f"attention implementation {implementation!r} cannot skip slots that are not in use at a fixed shape: "
            f"load the model with attn_implementation= one of {', '.join(OBSERVABLE)}, or drop compile=True"
        )


def check_generation(model: PreTrainedModel, kwargs: dict[str, Any]) -> GenerationConfig:
    """Refuse generate() options that a compressed cache cannot honour.

    Args:
        model: the model.
        kwargs: keyword arguments of generate().

    Returns:
        The generation config that generate() will work with, as far as dynts needs it.

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
            "another library has replaced this model's prepare_inputs_for_generation, as PEFT's prompt learning does, and may "
            "bring keys that dynts does not know of: generate with the model as transformers loads it"
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


def new_columns(
    config: GenerationConfig,
    kwargs: dict[str, Any],
    inputs: torch.Tensor | None,
    cache: BudgetCache,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> int:
    """How many tokens of each row, padding included, a generate() call will feed before it generates.

    Args:
        config: the generation config that generate() will work with.
        kwargs: keyword arguments of generate().
        inputs: its first positional argument, or None.
        cache: what the call continues.
        tokenizer: for messages.

    Raises:
        DyntsError: a continuation gives neither the whole conversation nor its whole attention mask, or the conversation is
            not the one in the cache.
        UnsupportedError: the continuation is to be read in chunks, which this transformers cannot do.
    """
    fed = cache.occupancy.columns
    tokens = inputs if inputs is not None else kwargs.get("input_ids")
    embeds = kwargs.get("inputs_embeds")
    main = embeds if embeds is not None else tokens
    if main is None:
        raise DyntsError("generate() under dynts needs input_ids or inputs_embeds")
    width: int = main.shape[1]
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise UnsupportedError(f"attention_mask must be 2D (1 for tokens, 0 for padding), got {mask.ndim}D")
    covered = width if mask is None else mask.shape[1]
    if fed and config.prefill_chunk_size is not None and not CHUNKS_GO_ON:
        raise UnsupportedError(
            f"transformers {transformers.__version__} begins again at the first token when it reads in chunks: continue this "
            "cache without prefill_chunk_size, or use transformers 5.21 or newer"
        )
    if covered == fed + width and fed:
        return width
    if covered != width:
        raise DyntsError(
            f"attention_mask covers {covered} tokens; expected {fed + width}: {fed} in the cache and {width} new ones"
        )
    if fed and embeds is None:
        _check_same_conversation(main, _shown(config, kwargs, inputs), cache, tokenizer)
    if width <= fed:
        raise DyntsError(
            f"the cache has seen {fed} tokens but the input has {width}: to continue a conversation pass all of it "
            "(the earlier sequences and the new turn), or an attention_mask that covers all of it"
        )
    return width - fed


def new_tokens(
    config: GenerationConfig, kwargs: dict[str, Any], inputs: torch.Tensor | None, columns: int
) -> list[int]:
    """Tokens of each row among the columns that a generate() call will feed, padding excluded."""
    shown = _shown(config, kwargs, inputs)
    embeds: Any = kwargs.get("inputs_embeds")
    tokens: Any = inputs if inputs is not None else kwargs.get("input_ids")
    rows = len(tokens if embeds is None else embeds)
    counts = [columns] * rows if shown is None else shown[:, -columns:].sum(dim=1).tolist()
    return [int(count) for count in counts for _ in range(config.num_return_sequences or 1)]


def _shown(config: GenerationConfig, kwargs: dict[str, Any], inputs: torch.Tensor | None) -> torch.Tensor | None:
    """The attention mask that generate() will work with; None where all are tokens.

    Without one transformers takes pad tokens for padding, unless they end a sequence too.
    """
    mask: torch.Tensor | None = kwargs.get("attention_mask")
    pad, ends = config.pad_token_id, config.eos_token_id
    if mask is not None or kwargs.get("inputs_embeds") is not None or pad is None:
        return mask
    if pad in (ends if isinstance(ends, list) else [ends]):
        return None
    tokens: Any = inputs if inputs is not None else kwargs.get("input_ids")
    return tokens != pad


def _check_same_conversation(
    ids: torch.Tensor,
    shown: torch.Tensor | None,
    cache: BudgetCache,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> None:
    """Refuse a whole conversation whose tokens are not those in the cache, as far as both go; padding does not count.

    Args:
        ids: int64 [rows, columns].
        shown: [rows, columns], 0 for padding; None where there is none.
        cache: what the conversation continues.
        tokenizer: for the message.

    Raises:
        DyntsError: says where they part, and what to pass instead.
    """
    width = min(ids.shape[1], cache.occupancy.columns)
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
        f"this is not the conversation in the cache: from token {column} of row {row} on they differ (counted from 0, padding "
        f"included): {named(int(ids[row, column]))} here, {named(int(known[row, column]))} there. Chat templates drop or "
        "rewrite earlier turns, thinking above all: pass the sequences that generate() returned and the new turn after them, "
        f"or the new turn alone with an attention_mask that covers the {cache.occupancy.columns} tokens in the cache too, or "
        "start without this cache"
    )


def dynamic_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Changes to keyword arguments of generate() that ask for the default cache by its name, which a given one excludes."""
    changes: dict[str, Any] = {}
    if "cache_implementation" in kwargs:
        changes["cache_implementation"] = None
    config = kwargs.get("generation_config")
    if config is not None and config.cache_implementation is not None:
        changes["generation_config"] = copy.deepcopy(config)
        changes["generation_config"].cache_implementation = None
    return changes


def _resolve(defaults: GenerationConfig, kwargs: dict[str, Any]) -> GenerationConfig:
    """The generation config that generate() will work with, as far as the checks need it."""
    config = copy.deepcopy(defaults)
    given = kwargs.get("generation_config")
    if given is not None:
        config.update(**{name: value for name, value in given.to_dict().items() if value is not None})
    config.update(**{name: value for name, value in kwargs.items() if name in config.__dict__})
    return config
