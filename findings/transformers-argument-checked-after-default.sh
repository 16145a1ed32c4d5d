#!/usr/bin/env bash
# transformers 5.24.0: generate() refuses a checkpoint's setting that an argument of the same call overrides.
#
# Guess before the run: `generate(ids, do_sample=False, num_return_sequences=1)` returns one sequence, whatever the model's generation
# config says of num_return_sequences: arguments come before defaults.
# Seen: with 3 in the generation config, ValueError "... different than 1 (got 3)". The config is checked with the checkpoint's value
# before the argument is looked at. Who wants one greedy sequence must change the config itself.
# Output: ValueError: Greedy methods (do_sample != True) without beam search do not support ... (got 3).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
ids = torch.tensor([[3, 4]])
settings = {"do_sample": False, "max_new_tokens": 2, "pad_token_id": 0, "num_return_sequences": 1}
assert model.generate(ids, **settings).shape == (1, 4)
model.generation_config.num_return_sequences = 3
try:
    model.generate(ids, **settings)
except ValueError as error:
    print(f"ValueError: {error}")
    assert "got 3" in str(error)
else:
    raise SystemExit("the argument counts now")
PYTHON
