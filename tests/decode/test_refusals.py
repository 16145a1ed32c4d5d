"""What cannot be done exactly is refused by name, before anything is computed, and leaves the model as it was."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
)

import dynts
from decoding import footprint, padded, random_predictor, random_tokens, word_tokenizer
from dynts import CompressionConfig, DyntsError, UnsupportedError
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from every_model import MODEL_TYPES, tiny_model_of
from tiny import tiny_model

CONFIG = CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
IDS = torch.tensor([random_tokens(8, seed=1)])


@pytest.fixture(scope="module")
def shared_model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def model(shared_model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A model that must come out of every test as it went in."""
    before = footprint(shared_model)
    yield shared_model
    assert footprint(shared_model) == before


@pytest.fixture
def passes(model: PreTrainedModel) -> Iterator[list[int]]:
    """Widths of the decoder's forward passes, those that fail included."""
    widths: list[int] = []
    # the embedding is the first thing that a pass computes
    handle = model.get_input_embeddings().register_forward_hook(lambda *call: widths.append(call[1][0].shape[1]))
    yield widths
    handle.remove()


# --- settings and models


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "predictor", "words"),
    [
        ("dints", None, ["unknown method 'dints'", "dynts, dynts-all, dynts-random", "streaming-llm"]),
        ("", None, ["unknown method ''"]),
        (dynts.methods.H2O, None, ["unknown method", "H2O"]),
        ("dynts", None, ["needs an importance predictor", "predictor="]),
        ("dynts-bottom", None, ["DynTSBottom", "needs an importance predictor"]),
        ("dynts", random_predictor(16), ["size 16", "size 32"]),
        # a predictor for another model is refused even by methods that ignore it
        ("window", random_predictor(64), ["size 64", "size 32"]),
        ("sepllm", None, ["separators", "tokenizer="]),
    ],
)
def test_settings(model: PreTrainedModel, passes: list[int], method: Any, predictor: Any, words: list[str]) -> None:
    with pytest.raises(DyntsError) as caught:
        dynts.compress(model, method, CONFIG, predictor)
    for word in words:
        assert word in str(caught.value)
    assert passes == []


SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def built(kind: Any, name: str, **settings: Any) -> PreTrainedModel:
    """A random model of any architecture."""
    return kind.from_config(AutoConfig.for_model(name, **settings))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: built(
                AutoModelForSeq2SeqLM, "t5", vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
            ),
            ["T5ForConditionalGeneration", "encoder-decoder"],
        ),
        (lambda: built(AutoModel, "bert", **SMALL, num_attention_heads=2, intermediate_size=16), ["generate()"]),
        (lambda: built(AutoModelForCausalLM, "mamba", **SMALL, state_size=4), ["Mamba"]),
        (lambda: tiny_model("mistral", sliding_window=8), ["every layer", "sliding-window"]),
        (
            lambda: tiny_model("gemma3", layer_types=["sliding_attention"] * 3),
            ["every layer", "sliding-window", "nothing to compress"],
        ),
        (lambda: tiny_model("llama", attn_implementation="flex_attention"), ["'flex_attention'", "sdpa, eager"]),
        (lambda: torch.nn.Linear(2, 2), ["Linear", "AutoModelForCausalLM"]),
        (
            lambda: built(AutoModelForCausalLM, "bert", **SMALL, num_attention_heads=2, intermediate_size=16),
            ["BertLMHeadModel", "later ones", "is_decoder=True"],
        ),
        (lambda: tiny_model("gemma3", use_bidirectional_attention=True), ["Gemma3ForCausalLM", "later ones"]),
        (lambda: tiny_model("llama", is_causal=False), ["LlamaForCausalLM", "later ones"]),
        (lambda: tiny_model_of("mllama"), ["MllamaForCausalLM", "decoder of its own"]),
        pytest.param(
            lambda: tiny_model_of("inkling_text"),
            ["InklingForCausalLM", "distances"],
            marks=pytest.mark.skipif("inkling_text" not in MODEL_TYPES, reason="this transformers has no Inkling"),
        ),
        (lambda: tiny_model_of("blt"), ["no cache for a blt model"]),
        pytest.param(
            lambda: tiny_model_of("dory"),
            ["DoryForCausalLM", "loops"],
            marks=pytest.mark.skipif("dory" not in MODEL_TYPES, reason="this transformers has no Dory"),
        ),
    ],
    ids=[
        *("t5", "bert", "mamba", "mistral", "gemma3", "flex", "module"),
        *("bert head", "gemma3 both ways", "llama both ways", "mllama", "inkling", "blt", "dory"),
    ],
)
def test_models(build: Callable[[], Any], words: list[str]) -> None:
    model = build()
    for method in ("window", "full"):
        with pytest.raises(UnsupportedError) as caught:
            dynts.compress(model, method, CONFIG)
        for word in words:
            assert word in str(caught.value)
    assert "generate" not in model.__dict__
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.quick
def test_multimodal_model() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**SMALL, "model_type": "llama", "intermediate_size": 32, "num_attention_heads": 2}
    model = built(
        AutoModelForImageTextToText,
        "llava",
        vision_config={**vision, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        text_config=text,
        image_token_index=1,
    )
    with pytest.raises(UnsupportedError, match="multimodal"):
        dynts.compress(model, "window", CONFIG)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["h2o", "snapkv", "rkv"])
def test_methods_that_look_at_queries_need_an_attention_that_shows_them(name: str) -> None:
    model = tiny_model("llama")
    # no kernel is needed to be refused
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedError, match=r"queries and keys.*flash_attention_2.*sdpa, eager"):
        dynts.compress(model, name, CONFIG)


@pytest.mark.quick
def test_sinks_that_are_no_number_of_each_head_are_refused_by_methods_that_look_at_attention() -> None:
    model = tiny_model("gpt_oss")
    for layer in model.get_decoder().layers:
        layer.self_attn.sinks.data = layer.self_attn.sinks.view(-1, 1)
    with dynts.compress(model, "h2o", CONFIG), pytest.raises(UnsupportedError, match=r"sinks of its own.*'window'"):
        model.generate(IDS, **GREEDY)
    with dynts.compress(model, "window", CONFIG):
        assert model.generate(IDS, **GREEDY).shape == (1, 28)


# --- the budget


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "window", "h2o"])
def test_a_budget_that_is_too_small_is_found_before_anything_is_computed(
    model: PreTrainedModel, passes: list[int], name: str
) -> None:
    prompt = torch.tensor([random_tokens(17, 2)])
    with pytest.raises(DyntsError) as caught, dynts.compress(model, name, CONFIG, random_predictor()):
        model.generate(prompt, **GREEDY)
    assert passes == []
    named = re.search(r"budget 24 .* question of 17 tokens.* a budget of at least (\d+)", str(caught.value))
    assert named is not None
    config = CompressionConfig(int(named.group(1)), 5, 0.4)
    with dynts.compress(model, name, config, random_predictor()) as session:
        assert model.generate(prompt, **GREEDY).shape == (1, 37)
    assert len(session.stats[0].compactions) > 3


@pytest.mark.quick
def test_the_budget_counts_the_longest_row_without_padding(model: PreTrainedModel, passes: list[int]) -> None:
    ids = torch.tensor([[0] * 25 + random_tokens(5, 1), [0] * 13 + random_tokens(17, 2)])
    with (
        pytest.raises(DyntsError, match="question of 17 tokens"),
        dynts.compress(model, "window", CONFIG),
    ):
        model.generate(ids, attention_mask=(ids > 0).long(), **GREEDY)
    assert passes == []


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o", "window"])
def test_a_budget_that_is_too_small_for_a_later_turn(model: PreTrainedModel, passes: list[int], name: str) -> None:
    with dynts.compress(model, name, CONFIG, random_predictor()) as session:
        results = []
        for refused in (False, True):
            sequences, cache = first_turn(model)
            done = len(passes)
            if refused:
                # 8 tokens of the first turn, 10 of the second: its 9, and the last one generated, which no pass has
                # seen
                ids = torch.cat([sequences, torch.tensor([random_tokens(9, 3)])], dim=1)
                with pytest.raises(DyntsError, match="question of 18 tokens"):
                    model.generate(ids, **{CACHE: cache}, **GREEDY)
            assert len(passes) == done
            # a shorter turn fits, and the refused one has left no trace in the cache
            ids = torch.cat([sequences, torch.tensor([random_tokens(4, 4)])], dim=1)
            results.append(model.generate(ids, **{CACHE: cache}, **GREEDY))
        assert torch.equal(*results)
        assert session.stats[1] == session.stats[3]


@pytest.mark.quick
def test_a_budget_that_is_too_small_for_a_prompt_in_chunks(model: PreTrainedModel, passes: list[int]) -> None:
    with pytest.raises(DyntsError, match="question of 30 tokens"), dynts.compress(model, "window", CONFIG):
        model.generate(torch.tensor([random_tokens(30, 2)]), prefill_chunk_size=4, **GREEDY)
    assert passes == []


# --- options of generate()


def run_never(*args: Any, **kwargs: Any) -> None:
    """A custom generation loop."""
    raise AssertionError("a refused loop must not run")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 2}, ["beam_search", "num_beams=1"]),
        ({"num_beams": 2, "do_sample": True}, ["beam_sample", "num_beams=1"]),
        ({"generation_config": GenerationConfig(num_beams=3)}, ["beam_search"]),
        ({"prompt_lookup_num_tokens": 2}, ["assisted_generation", "prompt lookup"]),
        ({"assistant_model": "itself"}, ["assisted_generation", "assistant model"]),
        ({"penalty_alpha": 0.6, "top_k": 4}, ["contrastive_search"]),
        ({"dola_layers": "high"}, ["dola_generation"]),
        ({"cache_implementation": "static"}, ["cache_implementation='static'"]),
        ({"cache_implementation": "quantized"}, ["cache_implementation='quantized'"]),
        ({"cache_implementation": "offloaded"}, ["cache_implementation='offloaded'"]),
        ({"cache_implementation": "hybrid"}, ["cache_implementation='hybrid'"]),
        ({"generation_config": GenerationConfig(cache_implementation="static")}, ["cache_implementation='static'"]),
        ({"use_cache": False}, ["use_cache=False"]),
        ({"generation_config": GenerationConfig(use_cache=False)}, ["use_cache=False"]),
        ({CACHE: DynamicCache()}, [CACHE, "DynamicCache"]),
        ({"custom_generate": run_never}, ["custom_generate"]),
        ({"attention_mask": torch.ones(1, 1, 8, 8)}, ["attention_mask", "2D"]),
        ({"attention_mask": torch.ones(8)}, ["attention_mask"]),
        ({"attention_mask": torch.ones(1, 7)}, ["attention_mask", "7", "8"]),
        ({"attention_mask": torch.ones(1, 9)}, ["attention_mask", "9", "8"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_options(model: PreTrainedModel, passes: list[int], options: dict[str, Any], words: list[str]) -> None:
    if options.get("assistant_model") == "itself":
        options = {"assistant_model": model}
    base = {"max_new_tokens": 20} if "generation_config" not in options else {}
    with dynts.compress(model, "window", CONFIG) as session:
        with pytest.raises(DyntsError) as caught:
            model.generate(IDS, **{**base, **options})
        assert passes == []
        assert session.stats == []
        # the session goes on as if nothing had been asked
        assert model.generate(IDS, **GREEDY).shape == (1, 28)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("settings", [{"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_options_in_a_positional_generation_config(
    model: PreTrainedModel, passes: list[int], settings: dict[str, Any]
) -> None:
    (name,) = settings
    with (
        dynts.compress(model, "window", CONFIG),
        pytest.raises(UnsupportedError, match="beam" if "beam" in name else name),
    ):
        model.generate(IDS, GenerationConfig(max_new_tokens=20, **settings))
    assert passes == []


@pytest.mark.quick
def test_options_of_the_model_itself() -> None:
    model = tiny_model("llama")
    model.generation_config.num_beams = 2
    with dynts.compress(model, "window", CONFIG), pytest.raises(UnsupportedError, match="beam_search"):
        model.generate(IDS, max_new_tokens=20)


@pytest.mark.quick
def test_the_dynamic_cache_asked_for_by_name_is_what_dynts_compresses(model: PreTrainedModel) -> None:
    with dynts.compress(model, "window", CONFIG):
        expected = model.generate(IDS, **GREEDY)
        assert torch.equal(model.generate(IDS, cache_implementation="dynamic", **GREEDY), expected)


@pytest.mark.quick
def test_no_input(model: PreTrainedModel, passes: list[int]) -> None:
    with dynts.compress(model, "window", CONFIG), pytest.raises(DyntsError, match="input_ids or inputs_embeds"):
        model.generate(**GREEDY)
    assert passes == []


@pytest.mark.quick
def test_a_static_cache(model: PreTrainedModel, passes: list[int]) -> None:
    cache = StaticCache(config=model.config, max_cache_len=40)
    with dynts.compress(model, "window", CONFIG), pytest.raises(UnsupportedError, match="StaticCache"):
        model.generate(IDS, **{CACHE: cache}, **GREEDY)
    assert passes == []


# --- continuing a conversation


def first_turn(model: PreTrainedModel, rows: int = 1) -> tuple[Tensor, BudgetCache]:
    """Sequences and cache of a turn whose last token no pass has seen: 8 + 20 tokens, 27 in the cache's count."""
    out = model.generate(IDS.repeat(rows, 1), return_dict_in_generate=True, **GREEDY)
    return out.sequences, out[CACHE]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("width", "mask", "words"),
    [
        # only the new tokens
        (5, None, ["27", "5", "all of it"]),
        (5, 5, ["27", "5", "all of it"]),
        (5, 31, ["31", "32"]),
        (5, 40, ["40", "32"]),
        # nothing new
        (27, None, ["27"]),
    ],
)
def test_a_continuation_without_the_whole_conversation(
    model: PreTrainedModel, width: int, mask: int | None, words: list[str]
) -> None:
    with dynts.compress(model, "window", CONFIG):
        sequences, cache = first_turn(model)
        slots = cache.budget_layers[0].keys.clone()
        with pytest.raises(DyntsError) as caught:
            model.generate(
                sequences[:, :width],
                attention_mask=None if mask is None else torch.ones(1, mask, dtype=torch.long),
                **{CACHE: cache},
                **GREEDY,
            )
        # and the cache is as it was
        assert torch.equal(cache.budget_layers[0].keys, slots)
        assert cache.get_seq_length() == 27
    for word in words:
        assert word in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("tokenizer", [None, word_tokenizer()], ids=["ids", "words"])
def test_another_conversation(model: PreTrainedModel, passes: list[int], tokenizer: Any, masked: bool) -> None:
    """Templates drop earlier thinking: what they make of a conversation is not what was generated."""
    batch = padded(random_tokens(5, 1), random_tokens(8, 2))
    options = {"return_dict_in_generate": True, **GREEDY}
    with dynts.compress(model, "window", CONFIG, tokenizer=tokenizer):
        # tiny models do write the token that pads, which generate() would take for padding without a mask
        out = model.generate(**batch, suppress_tokens=[0], **options)
        cache, fed, done = out[CACHE], 27, len(passes)
        whole = torch.cat([out.sequences, torch.tensor([[9] * 4] * 2)], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 24, dtype=torch.long)], dim=1)
        for row, column in ((0, 3), (0, 11), (1, 0), (1, fed - 1)):
            other = whole.clone()
            other[row, column] = 63 - other[row, column].clamp(max=60)
            other[row, fed:] = 10
            here, there = other[row, column].item(), whole[row, column].item()
            with pytest.raises(DyntsError) as caught:
                model.generate(other, attention_mask=mask if masked else None, **{CACHE: cache}, **options)
            word = "({!r})".format
            expected = [f"{token} {word(f'w{token}')}" if tokenizer else str(token) for token in (here, there)]
            assert f"token {column} of row {row} " in str(caught.value)
            assert f": {expected[0]} here, {expected[1]} there" in str(caught.value)
            assert "new turn" in str(caught.value)
            assert "27" in str(caught.value)
        # without its thinking it is shorter than what is cached
        short = torch.cat([whole[:, :10], whole[:, 14:20]], dim=1)
        with pytest.raises(DyntsError, match="token 10 of row"):
            model.generate(short, **{CACHE: cache}, **options)
        assert len(passes) == done
        # padding may be anything, and so may the last token, which no pass has seen
        mended = whole.clone()
        mended[0, :3], mended[:, fed] = 17, 12
        model.generate(mended, attention_mask=mask, **{CACHE: cache}, **options)


@pytest.mark.quick
def test_embeddings_are_no_known_conversation(model: PreTrainedModel) -> None:
    options = {"return_dict_in_generate": True, **GREEDY}
    with dynts.compress(model, "window", CONFIG):
        out = model.generate(inputs_embeds=model.get_input_embeddings()(IDS), suppress_tokens=[0], **options)
        whole = torch.cat([IDS + 1, out.sequences, IDS[:, :4]], dim=1)
        other = whole.clone()
        other[0, 8] += 1
        with pytest.raises(DyntsError, match="token 8 of row 0"):
            model.generate(other, **{CACHE: out[CACHE]}, **options)
        assert model.generate(whole, **{CACHE: out[CACHE]}, **options).sequences.shape == (1, 52)


@pytest.mark.quick
def test_another_batch_size(model: PreTrainedModel) -> None:
    with dynts.compress(model, "h2o", CONFIG):
        sequences, cache = first_turn(model)
        longer = torch.cat([sequences, sequences[:, :3]], dim=1)
        with pytest.raises(DyntsError, match="holds 1 rows but the input has 2"):
            model.generate(longer.repeat(2, 1), **{CACHE: cache}, **GREEDY)
        with pytest.raises(DyntsError, match="holds 1 rows but the input has 3"):
            model.generate(longer, **{CACHE: cache}, do_sample=True, num_return_sequences=3, max_new_tokens=5)
        with pytest.raises(DyntsError, match="holds 1 rows but the input has 2"):
            model(input_ids=longer[:, -1:].repeat(2, 1), **{CACHE: cache})
        # and none of them broke it
        assert model.generate(longer, **{CACHE: cache}, **GREEDY).shape == (1, 51)


@pytest.mark.quick
def test_a_4d_mask_and_positions_of_your_own_in_a_loop(model: PreTrainedModel, passes: list[int]) -> None:
    with dynts.compress(model, "window", CONFIG) as session:
        with pytest.raises(UnsupportedError, match="2D"):
            model(input_ids=IDS, attention_mask=torch.ones(1, 1, 8, 8), **{CACHE: session.new_cache()})
        with pytest.raises(UnsupportedError, match="position_ids"):
            model(input_ids=IDS, position_ids=torch.arange(5, 13)[None], **{CACHE: session.new_cache()})
        with pytest.raises(DyntsError, match="attention_mask has 7 columns"):
            model(input_ids=IDS, attention_mask=torch.ones(1, 7), **{CACHE: session.new_cache()})
    assert passes == []


@pytest.mark.quick
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda cache: cache.crop(3), "cropped"),
        (lambda cache: cache.crop(-1), "cropped"),
        (lambda cache: cache.reorder_cache(torch.tensor([0])), "beam"),
        (lambda cache: cache.batch_repeat_interleave(2), "repeat"),
        (lambda cache: cache.batch_select_indices(torch.tensor([0])), "selected"),
        (lambda cache: cache.reset(), "reset"),
    ],
    ids=["crop", "crop from the end", "reorder", "repeat", "select", "reset"],
)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_changes_of_a_cache(architecture: str, change: Callable[[BudgetCache], None], word: str) -> None:
    model = tiny_model(architecture)
    with dynts.compress(model, "window", CONFIG):
        _, cache = first_turn(model)
        layers = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        with pytest.raises(UnsupportedError, match=word):
            change(cache)
        for layer, (keys, values) in zip(cache.layers, layers, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)


@pytest.mark.quick
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_cache_outside_its_context(architecture: str) -> None:
    model = tiny_model(architecture)
    with dynts.compress(model, "window", CONFIG) as session:
        sequences, cache = first_turn(model)
        longer = torch.cat([sequences, sequences[:, :3]], dim=1)
        expected = model.generate(longer, **{CACHE: cache}, **GREEDY)
        sequences, cache = first_turn(model)
    layers = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    # without the session nobody tells the cache of new tokens: it would go wrong without a word
    with pytest.raises(DyntsError, match=r"dynts\.compress context"):
        model.generate(longer, **{CACHE: cache}, **GREEDY)
    with pytest.raises(DyntsError, match=r"dynts\.compress context"):
        model(input_ids=sequences[:, -1:], **{CACHE: cache})
    # no layer has been touched, sliding-window ones included, and the conversation can go on in a context
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
    with session:
        assert torch.equal(model.generate(longer, **{CACHE: cache}, **GREEDY), expected)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["h2o", "snapkv", "rkv"])
def test_a_cache_in_a_context_that_does_not_show_it_the_queries(model: PreTrainedModel, name: str) -> None:
    with dynts.compress(model, name, CONFIG):
        sequences, cache = first_turn(model)
    longer = torch.cat([sequences, sequences[:, :3]], dim=1)
    # its scores would be those of old queries
    with dynts.compress(model, "window", CONFIG), pytest.raises(DyntsError):
        model.generate(longer, **{CACHE: cache}, **GREEDY)


@pytest.mark.quick
def test_errors_are_value_errors_and_unsupported_ones_not_implemented_errors() -> None:
    assert issubclass(DyntsError, ValueError)
    assert issubclass(UnsupportedError, DyntsError)
    assert issubclass(UnsupportedError, NotImplementedError)
