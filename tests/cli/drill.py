"""Run dynts commands in child processes, some of which are killed with -9 at random moments and then run to their end.

    python drill.py SEED < jobs.json

A job is a `Job` of test_kill.py as JSON. The parent imports everything first, so that each start costs a fork and not
ten seconds. A job without kills comes first and says how long its command takes undisturbed. A moment is a number of
new entries, up to `spacing`, and then up to a tenth of that time, however fast the machine is. Prints for each job how
many children were really killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import dynts.cli
import dynts.collect.collect
import dynts.engines.transformers
import dynts.evaluate.evaluate
import dynts.report.arm_tables
import dynts.training.labelling
import dynts.training.train
import dynts.training.transforms


def entries(job: dict[str, Any]) -> int:
    """Count the lines of the journals that match, or else the files."""
    out = Path(job["out"])
    found = list(out.parent.glob(job["entries"]))
    try:
        return sum(path.read_bytes().count(b"\n") for path in found) if "jsonl" in job["entries"] else len(found)
    except FileNotFoundError:  # rolled up this moment
        return sys.maxsize


def start(job: dict[str, Any]) -> int:
    """Start a child that runs the command."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sys.stdout = sys.stderr
        sys.argv = ["dynts", *job["arguments"], "--out", job["out"]]
        dynts.cli.main()
        os._exit(70)  # main always exits by itself
    return child


def has_ended(child: int) -> bool:
    """Return whether a child has ended, without taking its status."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run(job: dict[str, Any], pick: random.Random, longest: float) -> int:
    """Disturb a command as often as asked, run it to its end, and return how many children were killed.

    Args:
        job: what to run.
        pick: chooses the moments.
        longest: the longest pause between the entries that were waited for and the kill, in seconds.
    """
    killed = 0
    for left in range(job["kills"], -1, -1):
        # shards of an earlier child stay; its journals are rolled up first, and a checkpoint is one file for ever
        before = entries(job) if "safetensors" in job["entries"] else 0
        child = start(job)
        if left:
            wanted, pause = pick.randint(0, job["spacing"]), pick.random() * longest
            while not has_ended(child) and entries(job) - before < wanted:
                time.sleep(0.002)
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"{job['arguments']} ended with {os.waitstatus_to_exitcode(status)}")
    return killed


if __name__ == "__main__":
    moments = random.Random(int(sys.argv[1]))
    killed, seconds = [], 0.0
    for each in json.load(sys.stdin):
        begun = time.monotonic()
        killed.append(run(each, moments, seconds / 10))
        if not each["kills"]:
            seconds = time.monotonic() - begun
    print(json.dumps(killed))
