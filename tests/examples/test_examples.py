"""Every example runs as a user would run it, and prints what it is there to show."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynts.predictor.model import ImportancePredictor
from dynts.tiny import load_tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def printed(script: str, folder: Path) -> str:
    """What a script prints, run in a folder of its own; it may say nothing on the other stream but progress."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def numbers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_is_short_and_says_what_it_shows(script: str) -> None:
    lines = (EXAMPLES / script).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith('"""')
    assert f"    python examples/{script}" in lines


def test_generate(tmp_path: Path) -> None:
    answer, lengths, compactions = printed("generate.py", tmp_path).splitlines()
    # d = c - a = 0, e = d - b = 0, f = b + c = 7, g = e + a = 7, c = a + b = 7
    assert answer.endswith("\\boxed{ ( 7 , 7 , 0 , 7 ) } <stop>")
    read, written, cached = numbers(lengths)
    assert cached == 180 < read + written
    count, before, after = numbers(compactions)
    assert count >= 2
    assert after < before == 180


def test_batch(tmp_path: Path) -> None:
    header, *rows = printed("batch.py", tmp_path).splitlines()
    assert header.split() == ["method", "right", "mean", "length", "most", "cached", "compactions"]
    names = [row[:16].strip() for row in rows]
    assert names == ["full", "dynts", "h2o, native", "snapkv, native", "random, native", "question-window"]
    figures = {name: numbers(row[16:]) for name, row in zip(names, rows, strict=True)}
    full = figures.pop("full")
    assert full[:2] == [20, 20]
    assert full[4] == 0
    for right, count, length, cached, compactions in figures.values():
        assert right <= count == 20
        assert cached == 200 < length < full[3]
        assert compactions > 20
    assert figures["dynts"][0] >= 17
    assert figures["random, native"][0] <= 6
    assert figures["question-window"][0] <= 3


def test_train_predictor(tmp_path: Path) -> None:
    labelled, *metrics, dynts_line, random_line = printed("train_predictor.py", tmp_path).splitlines()
    assert 36 <= numbers(labelled)[0] <= 40
    taus = {line.split(": ")[0].split(", ")[1]: float(line.split(": ")[1]) for line in metrics}
    assert taus["predictor"] > max(taus["position_only"], taus["random"]) + 0.03
    right, count, cached = numbers(dynts_line)
    assert (count, cached) == (20, 246)
    assert right >= 15
    assert numbers(random_line)[0] <= 4
    model, _ = load_tiny_model()
    trained = ImportancePredictor.from_pretrained(tmp_path / "my-predictor/predictor")
    trained.check_model(model)
    assert trained.config.label == "future-native"
    rows = [json.loads(line) for line in (tmp_path / "my-predictor/traces.jsonl").read_text().splitlines()]
    assert len(rows) == 40


def test_serve_and_ask(tmp_path: Path) -> None:
    serving, reasoning, answer, usage, streamed, ended = printed("serve_and_ask.py", tmp_path).splitlines()
    assert serving.startswith("serving tiny at http://127.0.0.1:")
    thought, said = reasoning.removeprefix("reasoning: "), answer.removeprefix("answer: ")
    assert "done g" in thought
    assert said.rstrip().endswith("\\boxed{ ( 7 , 7 , 0 , 7 ) }")
    assert streamed.removeprefix("streamed: ").rstrip() == (thought + said).rstrip()
    counted = ast.literal_eval(usage.removeprefix("usage.dynts: "))
    assert counted["peak_cached_tokens"] == counted["budget"] == 180
    assert counted["evicted_tokens"] > 180
    assert ended == "the server ended with exit code 0"


def test_own_method(tmp_path: Path) -> None:
    own, drawn, learned = printed("own_method.py", tmp_path).splitlines()
    assert own.startswith("Conclusions(")
    right = {line.split(":")[0].split("(")[0]: numbers(line.rpartition(": ")[2])[0] for line in (own, drawn, learned)}
    assert right["random"] <= 4
    assert right["Conclusions"] >= 12
    assert right["dynts"] >= 18
    assert all(numbers(line)[-1] == 246 for line in (own, drawn, learned))
