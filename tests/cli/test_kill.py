"""kill -9 at four random moments: the same command again must lose nothing and make nothing twice."""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch

from adder import rows_of
from dynts.evaluate.results import ArmResults, read_results
from dynts.predictor import ImportancePredictor
from dynts.tiny import WEIGHTS
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.training.shards import ShardFolder
from made_up import make_up
from recipes.embedded_model.solution import write_response

pytest.importorskip("pyarrow", reason="traces need pyarrow: pip install 'dynts-kv[collect]'")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the drill forks")

DRILL = Path(__file__).with_name("drill.py")
KILLS = 4
PROBLEMS, TRACES, EVALUATED = 15, 24, 8
SHORT = "--max-new-tokens 110 --batch 5"
EVAL = "--method full,dynts --samples 2 --budget 120 --local-window 40 --retention-ratio 0.66"


@dataclass(frozen=True)
class Job:
    """A command to disturb.

    Args:
        arguments: of `dynts`, without --out.
        out: what --out names.
        entries: a glob from the folder of `out` of what grows while the command works: lines of journals, or files.
        spacing: the most new entries between two kills.
        kills: how often.
    """

    arguments: list[str]
    out: str
    entries: str
    spacing: int
    kills: int = KILLS


def run_drill(jobs: list[Job]) -> None:
    """Work through the jobs; of four kills at least two must have hit a running child.

    The seed of the moments is printed; `DRILL_SEED=... pytest ...` takes it again.
    """
    seed = int(os.environ.get("DRILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"drill with DRILL_SEED={seed}")
    command = [sys.executable, str(DRILL), str(seed)]
    given = json.dumps([asdict(job) for job in jobs])
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, f"DRILL_SEED={seed}: {done.stderr}"
    killed: list[int] = json.loads(done.stdout)
    for job, count in zip(jobs, killed, strict=True):
        assert count >= min(job.kills, 2), f"DRILL_SEED={seed}: only {count} children of {job.arguments[0]} were killed"


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of commands that ran undisturbed, such as collect-0, and of those that were killed, such as collect-4."""
    folder = tmp_path_factory.mktemp("drill")
    problems = [make_problem(seed, steps=range(2, 3)) for seed in PREDICTOR[:PROBLEMS]]
    asked = [json.dumps({"question": item.question, "answer": item.answer}) for item in problems]
    (folder / "problems.jsonl").write_text("\n".join(asked))
    (folder / "chains.jsonl").write_text("\n".join(asked[:EVALUATED]))
    traces = [make_problem(seed, steps=range(4, 7)) for seed in PREDICTOR[:TRACES]]
    solved = [{"question": item.question, "response": write_response(item), "answer": item.answer} for item in traces]
    (folder / "traces.jsonl").write_text("\n".join(map(json.dumps, solved)))
    make_up(folder / "made-up", traces=30, ragged=True)
    model = f"--model {WEIGHTS} --device cpu"
    commands = {
        f"collect {model} --dataset {folder}/problems.jsonl --max-new-tokens 120 --batch 5": (
            "{out}/journal-*.jsonl",
            PROBLEMS // (KILLS + 1),
        ),
        f"label {model} --traces {folder}/traces.jsonl": ("{out}/*.safetensors", TRACES // (KILLS + 1)),
        f"eval {model} --benchmark {folder}/chains.jsonl {EVAL} --predictor {WEIGHTS}/answer {SHORT}": (
            "{out}/*/*/journal-*.jsonl",
            2 * EVALUATED // (2 * KILLS),
        ),
        f"train --shards {folder}/made-up --epochs 6 --batch-traces 1 --checkpoint-minutes 0 --device cpu": (
            ".{out}.partial/checkpoint.pt",
            1,
        ),
    }
    jobs = []
    for command, (entries, spacing) in commands.items():
        for kills in (0, KILLS):
            out = f"{command.split()[0]}-{kills}"
            jobs.append(Job(command.split(), str(folder / out), entries.format(out=out), spacing, kills))
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


def test_eval_killed_and_continued_in_either_arm(drilled: Path) -> None:
    def arms(kills: int) -> dict[str, ArmResults]:
        return {arm.method: arm for arm in read_results(drilled / f"eval-{kills}")}

    whole, continued = arms(0), arms(KILLS)
    assert set(whole) == set(continued) == {"full", "dynts, answer label"}
    for name, arm in whole.items():
        rows = rows_of(arm.folder)
        assert len(rows) == 2 * EVALUATED
        assert rows_of(continued[name].folder) == rows
        assert not list(continued[name].folder.glob("journal-*"))
        lengths = [{(s.problem_id, s.sample): s.cache_lengths for s in one.samples} for one in (arm, continued[name])]
        assert lengths[0] == lengths[1]
    assert all(sample.compactions for sample in whole["dynts, answer label"].samples)


def test_train_killed_and_continued(drilled: Path) -> None:
    whole, continued = (ImportancePredictor.from_pretrained(drilled / f"train-{kills}") for kills in (0, KILLS))
    for ours, theirs in zip(continued.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert continued.config.metrics == whole.config.metrics
    assert not list(drilled.glob(".train-*.partial"))
