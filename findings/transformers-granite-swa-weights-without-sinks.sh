#!/usr/bin/env bash
# transformers 5.24.0: the attention weights that Granite SWA returns leave out its attention sinks, which its output counts.
#
# Guess before the run: with `output_attentions=True` (eager) weights times values are what a head gives, as with gpt-oss and Flint, so a
# row of weights sums to less than 1 by the sink's share.
# Seen: every row sums to 1, and heads give less than weights times values: the sink's share is taken off their output afterwards.
#
#   granite_swa: rows sum to 1.000 ... 1.000, output / (weights times values) = 0.7756
#   granitemoe_swa: rows sum to 1.000 ... 1.000, output / (weights times values) = 0.7554
#   gpt_oss: rows sum to 0.487 ... 0.961, output / (weights times values) = 1.0000
#   flint: rows sum to 0.219 ... 0.985, output / (weights times values) = 1.0000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "granite_swa": {},
    "granitemoe_swa": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "flint": {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}
IDS = torch.randint(1, 97, (1, 24), generator=torch.Generator().manual_seed(1))

for name, specific in MODELS.items():
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **SIZES, **specific)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    seen = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        output = model(IDS, output_attentions=True, use_cache=True)
    weights, values = output.attentions[0][0], output.cache.layers[0].values[0]
    given = seen[0].view(24, 4, -1).transpose(0, 1)
    sums, told = weights.sum(-1), weights @ values
    ratio = given.norm() / told.norm()
    print(f"{name}: rows sum to {sums.min():.3f} ... {sums.max():.3f}, output / (weights times values) = {ratio:.4f}")
    if name in ("gpt_oss", "flint"):
        assert sums.max() < 0.99 and (given - told).abs().max() < 1e-5, "weights have the sink's share taken"
    else:
        assert (sums - 1).abs().max() < 1e-5 and ratio < 0.9, "the sinks are in the weights now"
PYTHON
