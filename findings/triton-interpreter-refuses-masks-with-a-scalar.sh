#!/usr/bin/env bash
# triton 3.9.0, TRITON_INTERPRET=1: a mask that joins a scalar condition with a vector one is refused.
#
# Guess before running: the interpreter broadcasts the scalar as the language says, so `(n > 0) & (offsets < n)` is a mask
# like any other, as in kernels that first ask whether their row is in use (vLLM 0.32 sets the bits of a grammar so).
# Seen: the mask is then no vector of booleans for the interpreter, and tl.store raises "mask has unsupported dtype",
# whichever of the two comes first and with | as well as &. Joining two vectors works.
#
#   vector & vector: [1.0, 1.0, 1.0, 0.0]
#   scalar & vector: mask has unsupported dtype
#   vector & scalar: mask has unsupported dtype
#   scalar | vector: mask has unsupported dtype
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5 triton==3.9.0
cat > "$folder/masks.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def two_vectors(out, n, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, 1.0, mask=(offsets >= 0) & (offsets < n))


@triton.jit
def scalar_first(out, n, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, 1.0, mask=(n > 0) & (offsets < n))


@triton.jit
def scalar_last(out, n, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, 1.0, mask=(offsets < n) & (n > 0))


@triton.jit
def either(out, n, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    tl.store(out + offsets, 1.0, mask=(n < 0) | (offsets < n))


def run(kernel):
    out = torch.zeros(4)
    try:
        kernel[(1,)](out, 3, SIZE=4)
    except Exception as error:
        return str(error.__cause__ or error)
    return out.tolist()


seen = {
    "vector & vector": run(two_vectors),
    "scalar & vector": run(scalar_first),
    "vector & scalar": run(scalar_last),
    "scalar | vector": run(either),
}
for name, what in seen.items():
    print(f"{name}: {what}")
assert seen.pop("vector & vector") == [1.0, 1.0, 1.0, 0.0]
assert set(seen.values()) == {"mask has unsupported dtype"}, seen
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/masks.py"
