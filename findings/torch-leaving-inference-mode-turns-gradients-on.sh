#!/usr/bin/env bash
# torch 2.13.0: `inference_mode(False)` turns gradients on, also inside `no_grad` and where no inference mode was entered.
#
# Guess before running: it takes inference mode away and leaves the rest as it is, so inside `no_grad` nothing changes.
# Seen: it switches gradients on for its block. What a layer with weights computes there keeps its history, and tensors
# that are appended to one another in a long loop hold on to all steps before. Entered the other way round, `no_grad`
# inside `inference_mode(False)`, gradients stay off.
#
#   no_grad, then inference_mode(False): gradients True, result keeps its history: True
#   inference_mode(False), then no_grad: gradients False, result keeps its history: False
#   nodes behind a table after 50 rounds of growing by a layer's result: over 50, against 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch

layer, ones = torch.nn.Linear(4, 4), torch.ones(1, 4)


def history(table):
    seen, ahead = set(), [table.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend(before for before, _ in node.next_functions)
    return len(seen)


def grown(outer, inner):
    table = torch.zeros(1, 4)
    with outer, inner:
        enabled = torch.is_grad_enabled()
        for _ in range(50):
            table = torch.cat([table[-8:], layer(ones)])
    return enabled, table.requires_grad, history(table)


first = grown(torch.no_grad(), torch.inference_mode(False))
second = grown(torch.inference_mode(False), torch.no_grad())
print(f"no_grad, then inference_mode(False): gradients {first[0]}, result keeps its history: {first[1]}")
print(f"inference_mode(False), then no_grad: gradients {second[0]}, result keeps its history: {second[1]}")
print(f"nodes behind a table after 50 rounds of growing by a layer's result: {first[2]}, against {second[2]}")
assert first[:2] == (True, True), first
assert second == (False, False, 0), second
assert first[2] > 50, first
assert torch.is_grad_enabled(), "outside all is as before"
PYTHON
