#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): a mixed number before a percent sign loses its fraction and the percent.
#
# Guess before the run: $33\frac{1}{3}\%$ is read as 100/3 percent, one third.
# Seen: it is read as the integer 33, so that neither 1/3 nor 100/3 % equals it, and 33 does. $33\%$ alone is 33/100.
# Output: [33, ...] equals 33: True; equals 1/3: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
"$folder/venv/bin/python" - <<'PYTHON'
from math_verify import parse, verify

mixed = parse(r"$33\frac{1}{3}\%$")
as_33, as_third = verify(parse("$33$"), mixed), verify(parse(r"$\frac{1}{3}$"), mixed)
print(mixed, "equals 33:", as_33, "equals 1/3:", as_third)
assert mixed[0] == 33 and as_33 and not as_third, "mixed numbers in percent are read otherwise now"
PYTHON
