"""Makes docs/results/leaderboard.csv and docs/results/leaderboard.md from the numbers in docs/results.

    python benchmarks/leaderboard.py

What `dynts report RESULTS --out REPORT --leaderboard docs/results/leaderboard.csv` has added to the file stays.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import stats

from dynts.evaluate.intervals import wilson
from dynts.report.leaderboard import FULL, PASS_AT_1, Standing, update_leaderboard
from dynts.tiny.solve import MEAN_LENGTH

RESULTS = Path(__file__).parents[1] / "docs" / "results"
KL = "KL of the answer"
EMBEDDED = "embedded model (0.8M)"
OTHER_SEED = "embedded model, seed 2"


def main() -> None:
    """Collect every standing and write both files."""
    standings = [*_embedded(), *_native(), *_smollm2()]
    for folder in sorted(RESULTS.iterdir()):
        if (folder / "compression.json").exists():
            standings += _replayed(folder / "compression.json")
    update_leaderboard(RESULTS / "leaderboard.csv", standings)


def _embedded() -> Iterator[Standing]:
    """Every method at shares of the mean length, one set for all heads and one for each."""
    made = json.loads((RESULTS / "embedded_model.json").read_text())
    for key, row in made["rows"].items():
        method, _, share = key.rpartition(", ")
        if key == FULL:
            method, share = FULL, "100%"
        if "correct" in row and share.endswith("%"):
            yield _chains(EMBEDDED, method, int(share.rstrip("%")) / 100, row["correct"], made["settings"]["problems"])


def _native() -> Iterator[Standing]:
    """Predictors of every label, on the embedded model and the one of another seed."""
    made = json.loads((RESULTS / "native_predictor.json").read_text())
    for key, row in made["rows"].items():
        model, share, method = key.split(", ", 2)
        name = EMBEDDED if model == "embedded" else OTHER_SEED
        yield _chains(name, method, int(share.rstrip("%")) / 100, row["correct"], made["settings"]["problems"])


def _chains(model: str, method: str, share: float, right: int, problems: int) -> Standing:
    found = wilson(right, problems)
    work = f"chains of arithmetic, mean length {MEAN_LENGTH} tokens, greedy"
    return Standing(model, work, PASS_AT_1, method, 1 / share, found.value, found.low, found.high, problems)


def _smollm2() -> Iterator[Standing]:
    """Replayed traces under fixed budgets; their compression is that of all tokens."""
    made = json.loads((RESULTS / "replay_fidelity.json").read_text())
    rows = list(made["rows"].values())
    length = np.mean([row["tokens"] for row in rows])
    for method in rows[0]["methods"]:
        for budget in made["settings"]["budgets"]:
            kl = [row["methods"][method][str(budget)]["kl"] for row in rows]
            work = "replayed R1 traces of GSM8K, by all tokens"
            yield _mean("SmolLM2-135M-Instruct", work, method, length / budget, kl)


def _replayed(path: Path) -> Iterator[Standing]:
    made = json.loads(path.read_text())
    rows = list(made["rows"].values())
    if len(rows) < 2:
        return  # one trace has no interval
    for method in rows[0]["methods"]:
        for times in made["settings"]["times"]:
            kl = [row["methods"][method][str(times)]["kl"] for row in rows if method in row["methods"]]
            work = "replayed R1 traces of GSM8K, by generated tokens"
            yield _mean(made["settings"]["model"], work, method, times, kl)


def _mean(model: str, work: str, method: str, times: float, values: list[float]) -> Standing:
    mean = float(np.mean(values))
    margin = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return Standing(model, work, KL, method, float(times), mean, mean - margin, mean + margin, len(values))


if __name__ == "__main__":
    main()
