#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): a degree sign is dropped, and the angle is taken in radians.
#
# Guess before the run: $\cos 30^\circ$ is read as cos(30 degrees), and equals $\frac{\sqrt{3}}{2}$.
# Seen: it is read as cos(30), in radians: 0.154. A model that leaves the cosine in its answer is wrong, one that writes cos(30) right.
# Output: cos(30) = 0.154...; equals sqrt(3)/2: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
"$folder/venv/bin/python" - <<'PYTHON'
from math_verify import parse, verify

cosine = parse(r"$\cos 30^\circ$")
right = verify(parse(r"$\frac{\sqrt{3}}{2}$"), cosine)
print(cosine[0], "=", float(cosine[0]), "equals sqrt(3)/2:", right)
assert abs(float(cosine[0]) - 0.15425144988758405) < 1e-12, "degrees are read otherwise now"
assert not right
PYTHON
