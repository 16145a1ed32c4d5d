#!/usr/bin/env bash
# transformers 5.24.0: the old name of the cache is deprecated in two ways, and only one of them is a Python warning.
#
# Guess before the run: passing `past_key_values` to a model and reading `output.past_key_values` both raise FutureWarning.
# Seen: passing does; reading only logs a line, once in a process. `-W error::FutureWarning` finds no old read of an output.
# Output: reading warns []; passing warns ['FutureWarning']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def categories(action) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        action()
    return [item.category.__name__ for item in seen]


output = model(torch.tensor([[3, 4]]))
reading = categories(lambda: output.past_key_values)
passing = categories(lambda: model(torch.tensor([[5]]), past_key_values=output.cache))
print("reading warns", reading, "passing warns", passing)
assert reading == [] and passing == ["FutureWarning"]
PYTHON
