#!/usr/bin/env bash
# torch 2.13.0: `torch.nn.attention.sdpa_kernel` is a context manager, but what it chooses holds for the whole process.
#
# Guess before running: like other scopes of torch (no_grad, autocast), it holds for the thread that enters it.
# Seen: another thread attends by the same choice meanwhile; and where the scopes of two threads overlap, the one that
# leaves last puts back what it found, which was the other's choice: all kernels but the plain "math" one stay switched
# off for good, without a word.
#
#   other thread, inside the scope of the first: flash False, cudnn False
#   after both scopes: flash False, efficient False, cudnn False, math True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import threading

import torch
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel


def choice():
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


everything, only_math = dict.fromkeys(choice(), True), {"flash": False, "efficient": False, "cudnn": False, "math": True}
assert choice() == everything, choice()

first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
seen = {}


def first():
    with sdpa_kernel([SDPBackend.MATH]):
        first_in.set()
        second_in.wait()
    first_out.set()


def second():
    first_in.wait()
    seen["other thread, inside the scope of the first"] = choice()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        second_in.set()
        first_out.wait()


threads = [threading.Thread(target=work) for work in (first, second)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
seen["after both scopes"] = choice()
for when, chosen in seen.items():
    print(f"torch {torch.__version__}: {when}: {chosen}")
assert list(seen.values()) == [only_math, only_math], "torch has changed"
PYTHON
