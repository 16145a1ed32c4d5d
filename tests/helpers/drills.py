"""Start the drill: dynts commands that are killed with -9 at random moments and run again."""

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

DRILL = Path(__file__).with_name("drill.py")
KILLS = 5


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
    """Work through the jobs; of five kills at least three must have hit a running child.

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
        assert count >= min(job.kills, 3), f"DRILL_SEED={seed}: only {count} children of {job.arguments[0]} were killed"
