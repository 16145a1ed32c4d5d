"""Every method on the embedded model at six budgets, and the paper's ablations, as `dynts eval` and `dynts report` make
them.

    python benchmarks/embedded_eval.py --work FOLDER --out docs/results/embedded_eval

500 held-out problems, sampled as the paper does (temperature 0.6, top-p 0.95, top-k 20), the question kept for all
methods but `window`. Budgets are shares of the mean full length; at 15% the local window is smaller, for the longest
questions to have room. The ablations run at 30%: the local window (1 token is none) by the retention ratio, for dynts.
The same command continues; more --samples add to the arms. Writes a folder for each arm into --work, and the report
with its manifests into --out.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from dynts.config import CompressionConfig
from dynts.methods import METHODS
from dynts.tiny import LABELS, WEIGHTS
from dynts.tiny.solve import MAX_NEW_TOKENS, budget_for, schedule

SHARES = (0.4, 0.3, 0.5, 0.2, 0.7, 0.15)
ROOM = 82 + 4
"""For the longest question, and for some selected tokens and their refill."""
ABLATION_SHARE = 0.3
"""Where settings make a difference: at 40% most of them do."""
WINDOWS = (1, 25, 50, 75, 90)
RATIOS = (0.2, 0.4, 0.6, 0.8)
BENCHMARK = "embedded"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for problems and arms")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=3, help="of each problem")
    parser.add_argument(
        "--ablation-samples", type=int, help="of each problem in the ablations; as --samples by default"
    )
    parser.add_argument(
        "--share", type=float, action="append", help="only this budget, without the ablations; repeatable"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    problems = work / f"{BENCHMARK}.jsonl"
    _run([str(Path(__file__).with_name("embedded_problems.py")), str(problems), "--count", str(arguments.problems)])
    shared = [
        *("--model", os.path.relpath(WEIGHTS), "--benchmark", str(problems), "--out", str(work), "--device", "cpu"),
        *("--max-new-tokens", str(MAX_NEW_TOKENS), "--batch", "100"),
        "--protect-question",
    ]
    predictors = [part for label in LABELS for part in ("--predictor", os.path.relpath(WEIGHTS / label))]
    samples = ["--samples", str(arguments.samples)]
    # the shipped predictors have seen thinking tokens only
    names = [name for name, method in METHODS.items() if not method.scores_all_tokens]
    everything = [*samples, *predictors, "--method", ",".join(names), "--granularity", "shared,native"]
    for share in arguments.share or SHARES:
        config = schedule(budget_for(share))
        config = replace(config, local_window=min(config.local_window, config.budget - ROOM))
        _eval([*shared, *everything], config, arguments.processes)
    if not arguments.share:
        samples = ["--samples", str(arguments.ablation_samples or arguments.samples)]
        budget = budget_for(ABLATION_SHARE)
        for window, ratio in product(WINDOWS, RATIOS):
            config = CompressionConfig(budget, window, ratio)
            _eval([*shared, *samples, *predictors[:2], "--method", "dynts"], config, arguments.processes)
    _run(["-m", "dynts", "report", str(work), "--out", str(arguments.out)])


def _eval(options: Sequence[str], config: CompressionConfig, processes: int) -> None:
    """Run `dynts eval` in several processes of one thread each."""
    _run(
        [
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "dynts", "eval"),
            *options,
            *("--budget", str(config.budget), "--local-window", str(config.local_window)),
            *("--retention-ratio", repr(config.retention_ratio)),
        ]
    )


def _run(arguments: Sequence[str]) -> None:
    # torchrun gives its processes one thread each only where it runs several
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} ended with {done.returncode}")


if __name__ == "__main__":
    main()
