"""kill -9 at five random moments: the same command again must lose nothing and make nothing twice."""

import json
import os
from pathlib import Path

import pytest

from adder import rows_of
from drills import run_drill
from dynts.tiny import WEIGHTS
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.training.shards import ShardFolder
from recipes.embedded_model.solution import write_response

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the drill forks")
KILLS = 5
PROBLEMS, TRACES = 24, 40


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of undisturbed and of killed runs."""
    folder = tmp_path_factory.mktemp("drill")
    problems = [make_problem(seed, steps=range(4, 5)) for seed in PREDICTOR[:PROBLEMS]]
    lines = [json.dumps({"question": item.question, "answer": item.answer}) for item in problems]
    (folder / "problems.jsonl").write_text("\n".join(lines))
    traces = [make_problem(seed, steps=range(4, 9)) for seed in PREDICTOR[:TRACES]]
    lines = [
        json.dumps(
            {
                "question": item.question,
                "response": write_response(item),
                "answer": item.answer,
            }
        )
        for item in traces
    ]
    (folder / "traces.jsonl").write_text("\n".join(lines))
    collect = f"collect --dataset {folder / 'problems.jsonl'} --max-new-tokens 320 --batch 12"
    label = f"label --traces {folder / 'traces.jsonl'}"
    jobs = [
        {
            "arguments": [*command.split(), "--model", str(WEIGHTS), "--device", "cpu"],
            "out": str(folder / f"{command.split()[0]}-{kills}"),
            "entries": entries,
            "kills": kills,
            "spacing": count // (KILLS + 1),
        }
        for command, entries, count in (
            (collect, "journal-*.jsonl", PROBLEMS),
            (label, "*.safetensors", TRACES),
        )
        for kills in (0, KILLS)
    ]
    run_drill(jobs)
    return folder


def test_collect_killed_and_continued(drilled: Path) -> None:
    whole, continued = rows_of(drilled / "collect-0"), rows_of(drilled / f"collect-{KILLS}")
    assert len(whole) == PROBLEMS
    # in float32 a trace does not depend on the batch that it happened to be in, so even the texts are the same
    assert continued == whole
    assert not list((drilled / f"collect-{KILLS}").glob("journal-*"))


def test_label_killed_and_continued(drilled: Path) -> None:
    whole, continued = (ShardFolder.open(drilled / f"label-{kills}") for kills in (0, KILLS))
    assert continued.manifest == whole.manifest
    assert len(whole.indices) == TRACES
    names = [f"{index:06d}.safetensors" for index in whole.indices]
    assert sorted(file.name for file in continued.path.glob("*.safetensors*")) == names
    for index in whole.indices:
        assert continued.is_whole(index)
        one, other = whole.read(index), continued.read(index)
        assert one.info == other.info
        assert one.hidden.equal(other.hidden)
        assert one.labels["answer"].equal(other.labels["answer"])
