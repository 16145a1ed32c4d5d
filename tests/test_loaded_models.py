"""Models as people load them: architectures that hide or compress their keys, wrapped, offloaded, quantised, being trained."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import dynts
from decoding import TOLERANCE, random_tokens
from dynts import CompressionConfig, UnsupportedError
from dynts.methods import H2O, Method
from dynts.training.labels import label_trace
from dynts.training.tokens import TokenizedTrace
from reference import Turn, reference_generate
from tiny import COMMON

CONFIG = CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
ROOMY = CompressionConfig(budget=200, local_window=5, retention_ratio=0.4)
IDS = torch.tensor([random_tokens(8, seed=1)])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}

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
        ("hrm_text", {"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 1}, ["HrmTextForCausalLM does not show", "layers "]),
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
@pytest.mark.parametrize("method", ["snapkv", "rkv", H2O(granularity="native")], ids=["snapkv", "rkv", "native"])
def test_compressed_keys_are_refused_where_the_method_reads_the_cache(method: str | Method) -> None:
    model = tiny("deepseek_v3", **LATENT)
    with dynts.compress(model, method, CONFIG), pytest.raises(UnsupportedError, match=r"DeepseekV3ForCausalLM.*h2o|shared"):
        model.generate(IDS, **GREEDY)


@pytest.mark.quick
@pytest.mark.parametrize("method", ["window", "h2o"])
def test_compressed_keys_where_the_method_does_not(method: str) -> None:
    model = tiny("deepseek_v3", **LATENT)
    with dynts.compress(model, method, CONFIG, record=True) as session:
        tokens, found = logits(model)
    expected = reference_generate(
        model, [Turn(IDS[0].tolist(), 40)], method=method, budget=24, local_window=5, retention_ratio=0.4, forced=[tokens]
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
