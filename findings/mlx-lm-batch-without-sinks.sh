#!/usr/bin/env bash
# mlx-lm 0.32.2: with max_kv_size, a batch overwrites the first four tokens of a sequence, which generate_step keeps.
#
# Guess before the run: BatchGenerator(max_kv_size=64) writes what generate_step(max_kv_size=64) writes, token for token, as both do
# without a limit; "old entries (except the first 4 tokens) will be overwritten", says the latter.
# Seen: they part soon after the limit is reached, also in a batch of one. The batch agrees with a cache that keeps no first tokens
# (RotatingKVCache(64, keep=0)): the attention sinks are gone, without a word, where one moves from one sequence to a batch.
# (That max_kv_size does nothing for models with make_cache, such as Llama, is known: ml-explore/mlx-lm #1343.)
# Output: no limit: equal True; 64 tokens: equal False, first difference at token [62, 48, 26]; keep=0: equal True
# (of prompts of 5, 20 and 40 tokens and random weights)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2
"$folder/venv/bin/python" - <<'PYTHON'
import random

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import RotatingKVCache
from mlx_lm.models.qwen2 import Model, ModelArgs

LAYERS, NEW = 2, 80
mx.set_default_device(mx.cpu)
mx.random.seed(0)
model = Model(
    ModelArgs(
        model_type="qwen2",
        hidden_size=64,
        num_hidden_layers=LAYERS,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=200,
    )
)
model.update(
    tree_map(lambda weight: mx.random.normal(weight.shape) * 0.25 if weight.ndim == 2 else weight, model.parameters())
)
prompts = [random.Random(length).choices(range(3, 200), k=length) for length in (5, 20, 40)]


def solo(make_options) -> list[list[int]]:
    return [
        [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=NEW, **make_options())]
        for prompt in prompts
    ]


def batch(limit: int | None) -> list[list[int]]:
    generator = BatchGenerator(model, max_kv_size=limit)
    written: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts, [NEW] * len(prompts))}
    while responses := generator.next_generated():
        for response in responses:
            written[response.uid].append(response.token)
    return list(written.values())


without, limited, batched = solo(dict), solo(lambda: {"max_kv_size": 64}), batch(64)
forgetful = solo(lambda: {"prompt_cache": [RotatingKVCache(64, keep=0) for _ in range(LAYERS)]})
firsts = [
    next((index for index, pair in enumerate(zip(*both, strict=True)) if pair[0] != pair[1]), None)
    for both in zip(limited, batched, strict=True)
]
print(f"no limit: equal {batch(None) == without}; 64 tokens: equal {batched == limited}, ", end="")
print(f"first difference at token {firsts}; keep=0: equal {batched == forgetful}")
assert batch(None) == without and limited != without
assert batched == forgetful != limited, "a batch keeps the first tokens now"
PYTHON
