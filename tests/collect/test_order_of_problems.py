"""In what order problems are solved."""

import json
from pathlib import Path

import pytest

from dynts.collect.plan import Plan
from dynts.config import Sampling
from dynts.traces.source import ProblemSource

pytestmark = pytest.mark.quick


def test_long_questions_come_first_and_equals_in_the_order_of_the_file(tmp_path: Path) -> None:
    questions = {"a": "one two", "b": "incomprehensibilities", "c": "one two three four", "d": "one  two"}
    lines = [json.dumps({"id": name, "question": text, "answer": "1"}) for name, text in questions.items()]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plan = Plan(ProblemSource(str(tmp_path / "problems.jsonl")), Sampling(9), samples=2)
    found = plan.survey()
    ids = [request.id for request in plan.requests(found, lambda question: len(question.split()))]
    assert ids == ["c#0", "c#1", "a#0", "a#1", "d#0", "d#1", "b#0", "b#1"]
    assert [request.problem.id for request in plan.requests(found)][::2] == ["b", "c", "d", "a"]
