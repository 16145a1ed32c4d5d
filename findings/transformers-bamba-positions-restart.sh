#!/usr/bin/env bash
# transformers 5.24.0: Bamba counts positions from 0 in every call where it is given none, also on a filled cache.
#
# Guess before the run: without `position_ids` a model counts on from what its cache holds, as Llama and Falcon-H1 do.
# Seen: the keys of a second piece are rotated as if the text began there, and the logits are wrong by a good part of their size, without a
# word. With `position_ids`, which `generate` passes, they are right.
#
#   difference to one pass, in pieces of 9, 7 and 8 tokens
#   bamba: 2.3e+00 without position_ids, 3.7e-06 with them
#   falcon_h1: 3.3e-06 without position_ids, 3.3e-06 with them
#   llama: 3.0e-06 without position_ids, 3.0e-06 with them
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
MODELS = {"bamba": {**MAMBA, "attn_layer_indices": [1]}, "falcon_h1": {**MAMBA, "mamba_d_ssm": 128}, "llama": {}}
IDS = torch.randint(1, 97, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model, positions):
    cache, logits = DynamicCache(config=model.config), []
    for piece, own in zip(IDS.split((9, 7, 8), dim=1), positions):
        logits.append(model(piece, position_ids=own, cache=cache).logits)
    return (torch.cat(logits, dim=1) - model(IDS, use_cache=False).logits).abs()[0]


print("difference to one pass, in pieces of 9, 7 and 8 tokens")
for name, specific in MODELS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **specific)).eval()
    without = difference(model, (None, None, None))
    given = difference(model, torch.arange(24)[None].split((9, 7, 8), dim=1))
    print(f"{name}: {without.max():.1e} without position_ids, {given.max():.1e} with them")
    assert given.max() < 1e-4 and without[:9].max() < 1e-4, "with positions all is right, and so is the first piece"
    if name == "bamba":
        assert without[9:].max() > 0.1, "Bamba counts on from its cache now"
    else:
        assert without.max() < 1e-4, without.max()
PYTHON
