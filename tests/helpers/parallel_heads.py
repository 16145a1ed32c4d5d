"""One process of a model under tensor parallelism: generates under a budget and writes down what it wrote and kept."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import dynts
from decoding import predictor_for, random_tokens
from method_table import CASES, EVERY

CONFIG = dynts.CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
SHARED = ["h2o", "dynts", "snapkv", "rkv", "dynts-all", "dynts-random", "keydiff", "vase"]
METHODS = [CASES[name].method for name in EVERY if name in SHARED or name.endswith("native")]


def run(model: Any) -> list[dict[str, Any]]:
    """Tokens, logits and kept positions of every method, for a batch of two rows."""
    rows = [random_tokens(4, 1), random_tokens(8, 2)]
    ids = torch.tensor([[0] * (8 - len(row)) + row for row in rows])
    found = []
    for method in METHODS:
        with dynts.compress(model, method, CONFIG, predictor_for(method), record=True) as session:
            out = model.generate(
                ids,
                attention_mask=(ids > 0).long(),
                do_sample=False,
                max_new_tokens=24,
                return_dict_in_generate=True,
                output_logits=True,
            )
        found.append({"tokens": out.sequences, "logits": torch.stack(out.logits), "kept": session.kept_positions})
    return found


if __name__ == "__main__":
    folder, results = map(Path, sys.argv[1:])
    sharded = AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto")).eval()
    torch.save(run(sharded), results / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
