#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): a repeating decimal is read as its whole part.
#
# Guess before the run: $0.\overline{3}$ is refused, or read as 1/3.
# Seen: it is read as 0, and so is $0.\dot{3}$: the answer 0 is right where the gold is one third, and 1/3 is wrong.
# Output: [0, ...] equals 0: True; equals 1/3: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
"$folder/venv/bin/python" - <<'PYTHON'
from math_verify import parse, verify

for text in (r"$0.\overline{3}$", r"$0.\dot{3}$"):
    gold = parse(text)
    zero, third = verify(gold, parse("$0$")), verify(gold, parse(r"$\frac{1}{3}$"))
    print(gold, "equals 0:", zero, "equals 1/3:", third)
    assert gold[0] == 0 and zero and not third, f"{text} is read otherwise now"
PYTHON
