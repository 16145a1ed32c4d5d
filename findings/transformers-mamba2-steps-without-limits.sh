#!/usr/bin/env bash
# transformers 5.24.0: models with Mamba 2 hold to the limits of the time step in passes over several tokens, not in single steps.
#
# Guess before the run: token by token and in one pass, a model gives the same logits to 2e-4, whatever `time_step_limit` is.
# Seen: they differ, so `generate` decodes with another model than whole passes train and evaluate: the update by one token takes no limits.
# Nemotron-H and Zamba2 always have one, `time_step_min` (0.001; Nemotron-H does not read its `time_step_limit`, from 0 to infinity);
# Mamba 2, Bamba, Granite 4 and Falcon-H1 do if `time_step_limit` is set. (PyTorch's path on a CPU.)
#
#   difference between single steps and one pass
#   nemotron_h: 1.7e-02, with the limit taken off the same weights 5.2e-06
#   zamba2: 3.8e-02, with the limit taken off the same weights 1.9e-05
#   mamba2: 5.7e+00, with the limit taken off the same weights 4.3e-06
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

SIZES = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "initializer_range": 0.2}
ATTENTION = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
MODELS = {
    "nemotron_h": {
        **ATTENTION,
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "head_dim": 16,
    },
    "zamba2": {**ATTENTION, "layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "num_mem_blocks": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "time_step_limit": (0.001, 0.1)},
}
IDS = torch.randint(1, 97, (1, 24), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(model):
    cache = DynamicCache(config=model.config)
    steps = [model(IDS[:, i : i + 1], position_ids=torch.tensor([[i]]), cache=cache).logits for i in range(24)]
    return (torch.cat(steps, dim=1) - model(IDS, use_cache=False).logits).abs()[0].max().item()


print("difference between single steps and one pass")
for name, specific in MODELS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **specific)).eval()
    limited = difference(model)
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    free = difference(model)
    print(f"{name}: {limited:.1e}, with the limit taken off the same weights {free:.1e}")
    assert free < 2e-4, "the limit is the cause"
    assert limited > 2e-3, "single steps have the limits now"
PYTHON
