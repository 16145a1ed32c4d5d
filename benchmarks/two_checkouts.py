"""Is this checkout as fast as another one? Decode steps, sampling, labelling and collecting, side by side.

    python benchmarks/two_checkouts.py OTHER_CHECKOUT [--rounds 5] [--out two_checkouts.json]

Each measurement runs in a process of its own with the `src` of one checkout in front; the two take turns, and begin by
turns. The figure is the median of the ratios of the rounds, this checkout over the other one, with the smallest and the
largest: below 1 this one is faster. Nothing else should run on the machine. A change that moves what is called here
(`label_trace`, `RowSampling`, the `dynts` command, `dynts.compress`) breaks the comparison, and says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SHAPE = HERE / "benchmarks" / "shapes" / "smollm2-135m"


def shaped_model() -> Any:
    """Return a model of SmolLM2-135M's shape with random weights; nothing of dynts is in it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHAPE), dtype=torch.float32).eval()


def decode(method: str) -> Callable[[Path], float]:
    """A measurement: seconds of a generate call of 200 tokens under a budget of 160, the model of SmolLM2-135M's
    shape."""

    def measure(_: Path) -> float:
        import time

        import torch

        import dynts

        model = shaped_model()
        predictor = dynts.ImportancePredictor.for_model(model).eval() if method == "dynts" else None
        config = dynts.CompressionConfig(budget=160, local_window=40, retention_ratio=0.4)
        question = torch.arange(64)[None] + 10
        lengths = {"max_new_tokens": 200, "min_new_tokens": 200, "do_sample": False}
        with dynts.compress(model, method, config, predictor):
            model.generate(question, **{**lengths, "max_new_tokens": 8, "min_new_tokens": 8})
            started = time.perf_counter()
            model.generate(question, **lengths)
            return time.perf_counter() - started

    return measure


def sample(_: Path) -> float:
    """Seconds of drawing 20 tokens for each of 20 rows from a vocabulary of 151,936, by the default settings."""
    import inspect
    import time

    import torch

    from dynts.config import Sampling
    from dynts.decode.sampling import RowSampling

    torch.manual_seed(0)
    steps, rows = 20, 20
    processor: Any = RowSampling([Sampling(steps + 1, seed=row) for row in range(rows)], torch.device("cpu"))
    # older ones are processors of generate, and draw for themselves
    takes_draws = "draws" in inspect.signature(RowSampling.__call__).parameters
    taken = []
    for _ in range(steps + 1):
        scores = 3 * torch.randn(rows, 151_936)
        given = (scores, [0.5] * rows) if takes_draws else (None, scores)
        started = time.perf_counter()
        processor(*given)
        taken.append(time.perf_counter() - started)
    return sum(taken[1:])


def compiled_step(batch: int) -> Callable[[Path], float]:
    """A measurement: seconds of a compiled step near 3,000 cached tokens a row, the model of SmolLM2-135M's shape."""

    def measure(_: Path) -> float:
        from statistics import median

        import dynts
        from dynts.bench.engines import TimedDynTS

        config = dynts.CompressionConfig(budget=3000, local_window=1500, retention_ratio=0.4)
        engine = TimedDynTS("compiled", shaped_model(), config, "window", compile=True)
        with engine.running():
            cache = engine.new_cache()
            engine.fill(cache, 128, 2960, batch)
            return median([engine.step(cache, batch) for _ in range(25)][5:])

    return measure


def label(_: Path) -> float:
    """Seconds of labelling a trace of 2,048 tokens, the model of SmolLM2-135M's shape."""
    import time

    from dynts.training.labels import label_trace
    from dynts.training.tokens import TokenizedTrace

    model = shaped_model()
    trace = TokenizedTrace(tuple([1] * 2048), 128, 2048 - 201, 2048 - 200)
    started = time.perf_counter()
    label_trace(model, trace, ("answer", "future"))
    return time.perf_counter() - started


def collect(folder: Path) -> float:
    """Seconds of `dynts collect` on 30 held-out problems of the embedded model, from the loading of the model to the
    end."""
    import time

    from dynts.cli import app
    from dynts.tiny import WEIGHTS
    from dynts.tiny.task import make_problem

    problems = [make_problem(500_000 + index) for index in range(30)]
    lines = [json.dumps({"id": f"p{n}", "question": p.question, "answer": p.answer}) for n, p in enumerate(problems)]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [
        "collect",
        "--model",
        str(WEIGHTS),
        "--dataset",
        str(folder / "problems.jsonl"),
        "--out",
        str(folder / "out"),
    ]
    words += ["--batch", "20", "--max-new-tokens", "700"]
    started = time.perf_counter()
    app(words, standalone_mode=False)
    return time.perf_counter() - started


CASES: dict[str, Callable[[Path], float]] = {
    **{f"decode, {method}": decode(method) for method in ("full", "dynts", "h2o", "snapkv")},
    **{f"compiled step, batch {batch}": compiled_step(batch) for batch in (1, 8)},
    "sample": sample,
    "label": label,
    "collect": collect,
}


def measured(checkout: Path, case: str) -> float:
    """Run one measurement in a process of its own.

    Args:
        checkout: whose `src` is imported.
        case: of `CASES`.

    Returns:
        Seconds.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(checkout), "--case", case, "--folder", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed with {checkout}:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout's folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("--only", choices=CASES, action="append", help="these measurements only; may be repeated")
    parser.add_argument("--case", choices=CASES, help="measure one case once, and print it")
    parser.add_argument("--folder", type=Path, help="an empty folder to work in, for --case")
    arguments = parser.parse_args()
    if arguments.case:
        print(CASES[arguments.case](arguments.folder))
        return
    found: dict[str, list[tuple[float, float]]] = {}
    for case in arguments.only or CASES:
        found[case] = []
        for turn in range(arguments.rounds):
            pair = [HERE, arguments.other.resolve()]
            seconds = {place: measured(place, case) for place in (pair if turn % 2 == 0 else pair[::-1])}
            found[case].append((seconds[pair[0]], seconds[pair[1]]))
        ratios = sorted(this / other for this, other in found[case])
        this, other = (median(side) for side in zip(*found[case], strict=True))
        print(
            f"{case}: {this:.3f} s, the other {other:.3f} s; {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
