"""Start the drill: dynts commands that are killed with -9 and run again."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

DRILL = Path(__file__).with_name("drill.py")


def run_drill(jobs: list[dict[str, Any]]) -> None:
    """Work through the jobs; where five kills were asked for, at least three must have hit a running child."""
    seed = random.SystemRandom().randrange(2**32)
    command = [sys.executable, str(DRILL), str(seed)]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    killed: list[int] = json.loads(done.stdout)
    for job, count in zip(jobs, killed, strict=True):
        assert count >= min(job["kills"], 3), f"seed {seed}: only {killed} were killed"
