#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0): any value of a function equals any other.
#
# Guess before the run: $f(2)=5$ and $f(2)=6$ are different answers.
# Seen: verify says that they are the same, and so are $f(2)=5$ and $f(3)=5$. Equations of a function's value have no symbol to solve
# for. A gold answer written so gives every model full marks that names the function too.
# Output: f(2)=5 and f(2)=6: True; f(2)=5 and f(3)=5: True; x=5 and x=6: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
"$folder/venv/bin/python" - <<'PYTHON'
from math_verify import parse, verify


def equal(gold: str, answer: str) -> bool:
    return verify(parse(f"${gold}$"), parse(f"${answer}$"))


for gold, answer, expected in (("f(2)=5", "f(2)=6", True), ("f(2)=5", "f(3)=5", True), ("x=5", "x=6", False)):
    print(f"{gold} and {answer}:", equal(gold, answer))
    assert equal(gold, answer) is expected, f"{gold} and {answer} are compared otherwise now"
PYTHON
