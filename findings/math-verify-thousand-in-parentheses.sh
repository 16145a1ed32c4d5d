#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): a thousand in parentheses is a pair.
#
# Guess before the run: $(1,000)$ is 1000, as $1,000$ is; or at worst the pair (1, 000) kept apart from the pair (1, 0).
# Seen: it is the tuple (1, 0), and equals $(1,0)$.
# Output: [(1, 0), ...] equals (1,0): True; 1,000 equals 1000: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
"$folder/venv/bin/python" - <<'PYTHON'
from math_verify import parse, verify

pair = parse("$(1,000)$")
as_point, plain = verify(parse("$(1,0)$"), pair), verify(parse("$1000$"), parse("$1,000$"))
print(pair, "equals (1,0):", as_point, "1,000 equals 1000:", plain)
assert str(pair[0]) == "(1, 0)" and as_point and plain, "thousands in parentheses are read otherwise now"
PYTHON
