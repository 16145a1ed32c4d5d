"""What is gained by rows that join and leave: this checkout beside one whose batches run until their longest row ends.

    git worktree add ../static 67d2b96
    python benchmarks/continuous.py ../static [--rounds 3] [--out continuous.json]

Three measurements with the embedded model and method dynts, each in a process of its own with the `src` of one checkout
in front; the two take turns, and begin by turns. Ratios are this checkout's over the other's, of the same round: the
median, with the smallest and the largest. Nothing else should run on the machine.

- eval: tokens/s of the engine behind `dynts eval` on held-out problems, which end where the model ends them.
- tail: the same with lengths that are forced: log-normal as of a reasoning model on MATH-500 (median 2,000, cut at
  16,384), scaled to the model's positions. The model has no end token, and a stop rule of this file ends each row.
- serve: a Poisson stream of such lengths from this checkout's `dynts bench --mode serve --url` against each one's
  `dynts serve`: the 95th percentile of the time to first token, of the requests not longer than the median.

Dead rows are counted at the model's input, alike in both: of the rows of all decode steps, those that gave no sample a
token. --scale makes trials short.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parents[1]
BATCH = 16
BUDGET = 246
"""40% of the mean length of the embedded model's answers, as in its other results."""
MEDIAN, CUT, POSITIONS = 2_000, 16_384, 2_048
ROOM = 88
"""Positions for the longest question."""
Figures = dict[str, float]


def generated(checkout: Path, forced: Sequence[int] | None, problems: int) -> Figures:
    """Generate for held-out problems, in this process; see `in_checkout`.

    Args:
        checkout: whose `src` is imported.
        forced: tokens of each problem's answer; None lets the model end it.
        problems: how many.

    Returns:
        Tokens a second, and the share of dead rows.
    """
    import dynts
    from dynts.config import Sampling
    from dynts.decode.arm import Arm
    from dynts.engines.engine import Request
    from dynts.engines.transformers import TransformersEngine
    from dynts.methods import resolve_method
    from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
    from dynts.tiny.solve import MAX_NEW_TOKENS, schedule
    from dynts.tiny.task import HELD_OUT, make_problem
    from dynts.traces.problems import Problem

    assert Path(dynts.__file__).is_relative_to(checkout), f"{dynts.__file__} is not of {checkout}"
    model, tokenizer = load_tiny_model()
    made = [(seed, make_problem(seed)) for seed in HELD_OUT[:problems]]
    arm = Arm(resolve_method("dynts"), schedule(BUDGET), str(WEIGHTS / "answer"))
    requests = [Request(Problem(str(seed), one.question, one.answer), 0, 0, arm) for seed, one in made]
    sampling = Sampling(MAX_NEW_TOKENS)
    if forced is not None:
        model.config.eos_token_id = model.generation_config.eos_token_id = None
        force({request.id: tokens for request, tokens in zip(requests, forced, strict=True)})
        sampling = Sampling(max(forced))
    predictors = {str(arm.predictor): load_tiny_predictor()}
    engine = TransformersEngine(model, tokenizer, sampling, (arm,), predictors, batch=BATCH)
    list(engine.generate(requests[:2]))
    stepped = 0

    def count(_: Any, given: tuple[Any, ...]) -> None:
        nonlocal stepped
        stepped += given[0].shape[0] if given[0].shape[1] == 1 else 0

    model.get_input_embeddings().register_forward_pre_hook(count)
    started = time.perf_counter()
    lengths = [completion.generated_tokens for completion in engine.generate(requests)]
    seconds = time.perf_counter() - started
    assert forced is None or sorted(lengths) == sorted(forced), "the stop rule was not followed"
    # a sample's first token comes from its prompt
    return {
        "tokens_per_second": sum(lengths) / seconds,
        "dead_rows": 1 - sum(length - 1 for length in lengths) / stepped,
    }


def force(lengths: dict[str, int]) -> None:
    """End the rows of either checkout's engine after these tokens, by request id, where it looks for stop strings."""
    import torch

    from dynts.engines import transformers as engine

    if hasattr(engine, "_Run"):  # rows join and leave
        engine._Run.stops = lambda run, sample: len(sample.ids) >= lengths[sample.request.id]  # type: ignore[method-assign]
        return
    inner = engine.TransformersEngine._generate  # type: ignore[attr-defined]

    def generate(self: Any, requests: Sequence[Any], prompts: Any, rows: Any, cache: Any) -> None:
        def stop(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
            wanted = (lengths[request.id] for request in requests)
            # this step's token is not among a row's yet; rows that ended are not among the rows
            return torch.tensor([len(rows.tokens.get(row, ())) + 1 >= least for row, least in enumerate(wanted)])

        rows.stop = stop
        inner(self, requests, prompts, rows, cache)

    engine.TransformersEngine._generate = generate  # type: ignore[attr-defined]


def served(checkout: Path, folder: Path, options: Sequence[str]) -> Figures:
    """Send a stream of this checkout's `dynts bench` to a checkout's `dynts serve`.

    Args:
        checkout: whose server it is.
        folder: an empty one.
        options: of the stream.

    Returns:
        Times to first token in seconds, tokens a second, and how many requests failed.
    """
    weights, endless = HERE / "src" / "dynts" / "tiny" / "weights", folder / "endless"
    shutil.copytree(weights, endless)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps(settings | {"eos_token_id": None}))
    words = ["serve", endless, "--predictor", weights / "answer", "--engine", "transformers", "--port", "0"]
    words += ["--budget", str(BUDGET), "--local-window", "75", "--max-batch", str(BATCH)]
    words += ["--max-waiting", "10000", "--max-new-tokens", str(POSITIONS - ROOM)]
    command = [sys.executable, "-m", "dynts", *map(str, words)]
    errors = folder / "errors.txt"
    with (
        errors.open("w") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True, env=env(checkout)) as server,
    ):
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1:]
            if not url:
                raise SystemExit(f"the server of {checkout} did not start:\n{errors.read_text()}")
            bench = [sys.executable, "-m", "dynts", "bench", "--quiet", "--model", str(weights), "--mode", "serve"]
            bench += ["--url", url[0], "--out", str(folder / "stream.json"), *options]
            done = subprocess.run(bench, env=env(HERE), capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"the stream to {checkout} failed:\n{done.stderr}")
        finally:
            server.send_signal(signal.SIGTERM)
    [row] = json.loads((folder / "stream.json").read_text())["rows"]
    first = {name: group["first_seconds"] for name, group in row["waiting"].items()}
    return {
        "short_first_p95": first["short"]["p95"],
        "long_first_p95": first["long"]["p95"],
        "tokens_per_second": row["tokens_per_second"],
        "failed": sum(row["failures"].values()),
    }


def env(checkout: Path) -> dict[str, str]:
    """The environment of a process that imports a checkout."""
    return {**os.environ, "PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1"}


def in_checkout(checkout: Path, folder: Path, case: dict[str, Any]) -> Figures:
    """Call `generated` in a process of its own.

    Args:
        checkout: whose `src` is imported.
        folder: an empty one.
        case: the other arguments.
    """
    given = folder / "case.json"
    given.write_text(json.dumps(case), encoding="utf-8")
    command = [sys.executable, __file__, str(checkout), "--case", str(given)]
    done = subprocess.run(command, env=env(checkout), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed with {checkout}:\n{done.stderr}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def by_turns(measure: Callable[[Path, Path], Figures], pair: Sequence[Path], rounds: int) -> list[list[Figures]]:
    """Measure both checkouts, each round the other one first; the figures of each round, in the order of the pair."""
    found = []
    for turn in range(rounds):
        figures = {}
        for checkout in pair if turn % 2 == 0 else pair[::-1]:
            with TemporaryDirectory() as folder:
                figures[checkout] = measure(checkout, Path(folder))
        found.append([figures[checkout] for checkout in pair])
    return found


def describe(name: str, found: list[list[Figures]]) -> str:
    """The medians of both sides, and the ratios."""
    lines = [f"{name}:"]
    for figure in found[0][0]:
        this, other = ([pair[side][figure] for pair in found] for side in (0, 1))
        line = f"  {figure}: {median(this):.4g}, the other {median(other):.4g}"
        if all(other) and figure not in ("dead_rows", "failed"):
            ratios = [mine / its for mine, its in zip(this, other, strict=True)]
            line += f"; {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("eval", "tail", "serve"), action="append", help="may be repeated")
    parser.add_argument("--problems", type=int, default=96, help="of eval and tail")
    parser.add_argument("--requests", type=int, default=200, help="of the stream")
    parser.add_argument("--rate", type=float, default=1.0, help="of the stream, requests a second")
    parser.add_argument("--sigma", type=float, default=0.9, help="of the logarithm of the lengths")
    parser.add_argument("--scale", type=float, default=1.0, help="of the lengths; less than 1 for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for all that was measured")
    parser.add_argument("--case", type=Path, help="measure one case once, and print it")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(generated(arguments.other, **json.loads(arguments.case.read_text()))))
        return
    from dynts.bench.stream import Lengths

    scale = arguments.scale * (POSITIONS - ROOM) / CUT
    tail = Lengths(round(MEDIAN * scale), arguments.sigma, round(CUT * scale))
    source = random.Random(arguments.seed)
    forced = [tail.draw(source) for _ in range(arguments.problems)]
    cases = {"eval": None, "tail": forced}
    stream: list[object] = ["--generated", tail.median, "--generated-sigma", tail.sigma, "--generated-most", tail.most]
    stream += ["--prompt", 60, "--rate", arguments.rate, "--requests", arguments.requests, "--seed", arguments.seed]
    found = {}
    for name in arguments.only or (*cases, "serve"):
        if name == "serve":
            measure = partial(served, options=[str(word) for word in stream])
        else:
            measure = partial(in_checkout, case={"forced": cases[name], "problems": arguments.problems})
        found[name] = by_turns(measure, [HERE, arguments.other.resolve()], arguments.rounds)
        print(describe(name, found[name]), flush=True)
        if arguments.out:
            record = {"options": {**vars(arguments), "out": None, "other": None}, "rounds": found}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
