"""Models as people load them: architectures that hide or compress their keys, wrapped, offloaded, quantised, being
trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dynts
from decoding import TOLERANCE, footprint, random_predictor, random_tokens
from dynts import CompressionConfig, ImportancePredictor, UnsupportedError
from dynts.cache.interface import CACHE
from dynts.methods import H2O, DynTS, Method, Random
from dynts.models.shape import head_size, kv_heads
from dynts.traces.tokens import TokenizedTrace
from dynts.training.labels import label_trace
from every_model import tiny_model_of
from reference import Turn, reference_generate
from tiny import COMMON, tiny_model

CONFIG = CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
ROOMY = CompressionConfig(budget=200, local_window=5, retention_ratio=0.4)
IDS = torch.tensor([random_tokens(8, seed=1)])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}

# keys and values are cached as one low-rank latent per token
LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **{"moe_intermediate_size": 16, "first_k_dense_replace": 1},
}


def tiny(kind: str, **settings: Any) -> PreTrainedModel:
    """A random model of an architecture that `tiny_model` does not know."""
    config = AutoConfig.for_model(kind, **{**COMMON, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
    return model.eval()


def logits(model: PreTrainedModel, ids: Tensor = IDS) -> tuple[list[int], Tensor]:
    """What generate writes, and the logits that chose it."""
    out = model.generate(ids, return_dict_in_generate=True, output_logits=True, **GREEDY)
    return out.sequences[0, ids.shape[1] :].tolist(), torch.cat(out.logits)


# --- architectures whose attention is not what methods take it for


@pytest.mark.quick
@pytest.mark.parametrize("method", ["h2o", "snapkv", "rkv"])
@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        # its decoder layers keep attention_observer= to themselves
        ("nemotron", {}, ["NemotronForCausalLM does not show", "layers 0, 1:"]),
        # two stacks of one layer run in cycles: more cached layers than modules
        (
            "hrm_text",
            {"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 1},
            ["HrmTextForCausalLM does not show", "layers "],
        ),
        # each layer calls attention for both halves of its values
        ("diffllama", {}, ["DiffLlamaForCausalLM computes attention several times", "layers 0, 1:"]),
    ],
    ids=["nemotron", "hrm_text", "diffllama"],
)
def test_layers_that_do_not_show_their_queries_once(
    kind: str, settings: dict[str, Any], words: list[str], method: str
) -> None:
    model = tiny(kind, **settings)
    with dynts.compress(model, method, CONFIG), pytest.raises(UnsupportedError) as caught:
        model.generate(IDS, **GREEDY)
    for word in [*words, "choose one of the methods", "window"]:
        assert word in str(caught.value)
    assert "h2o" not in str(caught.value)
    # and what looks at positions alone works
    expected = logits(model)
    with dynts.compress(model, "window", ROOMY):
        found = logits(model)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)


@pytest.mark.quick
def test_labels_need_the_queries_of_every_layer() -> None:
    trace = TokenizedTrace(ids=tuple(random_tokens(30, 3)), question_end=5, thinking_end=20, answer_start=21)
    with pytest.raises(UnsupportedError, match=r"NemotronForCausalLM does not show .* layers 0, 1: labels"):
        label_trace(tiny("nemotron"), trace)


@pytest.mark.quick
@pytest.mark.parametrize(
    "method",
    ["snapkv", "rkv", "keydiff", "vase", H2O(granularity="native")],
    ids=["snapkv", "rkv", "keydiff", "vase", "native"],
)
def test_compressed_keys_are_refused_where_the_method_reads_the_cache(method: str | Method) -> None:
    model = tiny("deepseek_v3", **LATENT)
    with (
        dynts.compress(model, method, CONFIG),
        pytest.raises(UnsupportedError, match=r"DeepseekV3ForCausalLM.*h2o|shared"),
    ):
        model.generate(IDS, **GREEDY)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["window", "h2o"])
def test_compressed_keys_where_the_method_does_not(method: str) -> None:
    model = tiny("deepseek_v3", **LATENT)
    with dynts.compress(model, method, CONFIG, record=True) as session:
        tokens, found = logits(model)
    expected = reference_generate(
        model,
        [Turn(IDS[0].tolist(), 24)],
        method=method,
        budget=24,
        local_window=5,
        retention_ratio=0.4,
        forced=[tokens],
    )
    torch.testing.assert_close(found, expected.logits[0], atol=TOLERANCE, rtol=0)
    assert [kept[0].tolist() for kept in session.kept_positions] == [kept.tolist() for kept in expected.kept_positions]


@pytest.mark.quick
def test_a_model_with_a_mask_of_its_own_for_each_head() -> None:
    model = tiny("doge", num_experts=4)
    expected = logits(model)
    with dynts.compress(model, "window", ROOMY):
        found = logits(model)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)
    with dynts.compress(model, "h2o", CONFIG), pytest.raises(UnsupportedError, match=r"DogeAttention.*mask.*'window'"):
        model.generate(IDS, **GREEDY)


@pytest.mark.quick
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        # each slot's mask is made of the values that all its heads hold
        ("doge", {"num_experts": 4}, r"DogeAttention.*mask.*'shared'"),
        # the second half of the keys that are attended to are the cached ones again
        ("jetmoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, r"JetMoeForCausalLM repeats.*'shared'"),
        # all heads attend to the values of the first half of them, then to those of the second
        ("diffllama", {}, r"DiffLlamaForCausalLM repeats.*'shared'"),
    ],
)
def test_heads_that_cannot_have_tokens_of_their_own(
    kind: str, settings: dict[str, Any], words: str, attention: str
) -> None:
    model = tiny(kind, **settings)
    model.set_attn_implementation(attention)
    for method in (DynTS(granularity="native"), Random(granularity="native")):
        predictor = random_predictor(native=True) if method.needs_predictor else None
        with dynts.compress(model, method, CONFIG, predictor), pytest.raises(UnsupportedError, match=words):
            model.generate(IDS, **GREEDY)
    with dynts.compress(model, Random(granularity="shared"), CONFIG):
        model.generate(IDS, **GREEDY)


@pytest.mark.quick
def test_full_attention_layers_with_sizes_of_their_own() -> None:
    model = tiny_model_of("gemma4_text")
    sliding, full = (model.config.per_layer_config[layer] for layer in range(2))
    assert (kv_heads(model.config), head_size(model.config)) == (full.num_key_value_heads, full.head_dim)
    assert (kv_heads(model.config), head_size(model.config)) != (sliding.num_key_value_heads, sliding.head_dim)
    per_layer: dict[int, dict[str, Any]] = {0: {"head_dim": 16}}
    differing = AutoConfig.for_model("qwen2", **COMMON, layer_types=["full_attention"] * 2, per_layer_config=per_layer)
    with pytest.raises(UnsupportedError, match="full-attention layers of a qwen2 model differ"):
        head_size(differing)


# --- wrapped, offloaded, quantised, in training


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:`is_gradient:FutureWarning")
def test_adapters_stay_active_and_the_wrapper_generates_under_the_budget() -> None:
    peft = pytest.importorskip("peft")

    def with_adapter() -> Any:
        adapter = peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return peft.get_peft_model(tiny_model("llama"), adapter).eval()

    wrapped, merged = with_adapter(), with_adapter().merge_and_unload()
    before = footprint(wrapped.get_base_model())
    with dynts.compress(merged, "dynts", CONFIG, random_predictor()):
        expected = logits(merged)
    with dynts.compress(wrapped, "dynts", CONFIG, random_predictor()) as session:
        found = logits(wrapped)
        assert logits(wrapped.get_base_model())[0] == found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)
    assert [stats.peak_tokens for stats in session.stats] == [24, 24]
    with dynts.compress(wrapped, "window", CONFIG):
        adapted = logits(wrapped)[1]
        with wrapped.disable_adapter():
            assert not torch.allclose(logits(wrapped)[1], adapted)
    assert footprint(wrapped.get_base_model()) == before


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:`is_gradient:FutureWarning")
@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig", "AdaptionPromptConfig"])
def test_prompts_learned_by_peft_are_refused(kind: str) -> None:
    peft = pytest.importorskip("peft")
    settings = {"adapter_len": 4, "adapter_layers": 1} if kind.startswith("Adaption") else {"num_virtual_tokens": 4}
    wrapped = peft.get_peft_model(tiny_model("llama"), getattr(peft, kind)(task_type="CAUSAL_LM", **settings)).eval()
    with pytest.raises(UnsupportedError, match=r"PEFT's (PREFIX_TUNING|PROMPT_TUNING|ADAPTION_PROMPT) .* LoRA"):
        dynts.compress(wrapped, "window", CONFIG)
    if not kind.startswith("Adaption"):
        # nor does it come in through the model that it wraps
        inner = wrapped.get_base_model()
        with dynts.compress(inner, "window", CONFIG), pytest.raises(UnsupportedError, match="PEFT's prompt learning"):
            wrapped.generate(input_ids=IDS, **GREEDY)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["dynts", "h2o"])
def test_embeddings_offloaded_to_disk(tmp_path: Path, method: str) -> None:
    model = tiny_model("llama")
    with dynts.compress(model, method, CONFIG, random_predictor()):
        expected = logits(model)
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head"), "cpu")
    offloaded = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert offloaded.device.type == "meta"
    predictor = random_predictor()
    with dynts.compress(offloaded, method, CONFIG, predictor) as session:
        found = logits(offloaded)
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], atol=0, rtol=0)
    assert session.stats[-1].peak_tokens == 24
    assert next(predictor.parameters()).device.type == "cpu"
    with pytest.raises(UnsupportedError, match="offloaded weights"):
        dynts.compress(offloaded, "window", CONFIG, compile=True)


@pytest.mark.quick
def test_gradient_checkpointing_is_refused_in_training_mode_only() -> None:
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG) as session:
        expected = logits(model)
        # transformers 5.24 calls it so
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
        model.train()
        with pytest.raises(UnsupportedError, match=r"gradient checkpointing .* model\.eval\(\)"):
            model.generate(IDS, **GREEDY)
        with pytest.raises(UnsupportedError, match="gradient checkpointing"):
            model(input_ids=IDS, **{CACHE: session.new_cache()})
        # a training step without a cache is none of the session's business
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        model.eval()
        assert logits(model)[0] == expected[0]


@pytest.mark.quick
def test_a_cache_that_a_model_does_not_use_is_noticed() -> None:
    model = tiny_model("llama")
    drop = model.model.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, CACHE: None}), with_kwargs=True
    )
    with (
        dynts.compress(model, "window", CONFIG),
        pytest.raises(UnsupportedError, match=r"layers 1 of Llama.* cached nothing"),
    ):
        model.generate(IDS, **GREEDY)
    drop.remove()


@pytest.mark.parametrize("quantise", ["embedding", "all"])
def test_embeddings_quantised_by_torchao(quantise: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model("llama")
    predictor = ImportancePredictor.for_model(model)
    kinds = torch.nn.Embedding if quantise == "embedding" else (torch.nn.Embedding, torch.nn.Linear)
    how = quantization.IntxWeightOnlyConfig(torch.int8, granularity=quantization.PerAxis(0))
    quantization.quantize_(model, how, filter_fn=lambda module, _: isinstance(module, kinds))
    expected = logits(model)
    for method in ("dynts", "h2o"):
        with dynts.compress(model, method, ROOMY, predictor):
            found = logits(model)
        assert found[0] == expected[0]
        torch.testing.assert_close(found[1], expected[1], atol=TOLERANCE, rtol=0)
    # quantised embeddings still tell models apart
    with pytest.raises(dynts.DyntsError, match="another model of the same shape"):
        ImportancePredictor.for_model(tiny_model("llama", seed=1)).check_model(model)


@pytest.mark.quick
def test_the_tokenizer_of_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from gguf_files import MARKERS, TOKENS, tokenizer_keys, write_gguf

    model = tiny_model("qwen2")
    write_gguf(tmp_path / "model.gguf", model, tokenizer_keys())
    model.name_or_path = str(tmp_path)
    session = dynts.compress(model, "window", CONFIG)
    assert session.tokenizer is not None
    assert session.tokenizer.convert_tokens_to_ids(MARKERS[1]) == TOKENS.index(MARKERS[1])
    assert session.scanner is not None
    # which of two it is cannot be known
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.warns(UserWarning, match=r"no tokenizer .* takes answers for thinking; pass tokenizer="):
        session = dynts.compress(model, "window", CONFIG)
    assert session.tokenizer is None
