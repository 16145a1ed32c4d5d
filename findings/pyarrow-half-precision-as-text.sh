#!/usr/bin/env bash
# pyarrow 26.0.1: a half-precision number becomes text with the digits of its double, other floats with their own.
#
# Guess before the run: 0.1 as float16 is cast to the text "0.1", the shortest that reads back, as it is for float32 and float64.
# Seen: "0.0999755859375", where numpy writes 0.1. A column of gold answers in half precision changes its look by the cast.
# Output: float16 0.0999755859375; float32 0.1; float64 0.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy
import pyarrow

found = {}
for kind in (numpy.float16, numpy.float32, numpy.float64):
    [found[kind.__name__]] = pyarrow.array(numpy.array([0.1], dtype=kind)).cast(pyarrow.string()).to_pylist()
    assert str(kind(0.1)) == "0.1"
print(found)
assert found == {"float16": "0.0999755859375", "float32": "0.1", "float64": "0.1"}, "floats become text otherwise now"
PYTHON
