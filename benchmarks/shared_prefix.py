"""What it saves that a system prompt shared by requests is read once and copied into their rows.

    python benchmarks/shared_prefix.py --model FOLDER --gguf-file NAME --shared 600 --own 30

A continuous batch of one row is given one request after another: prompts of random tokens that begin alike. The table
has the milliseconds from joining to the first token, with copies and without, in turns: the first request reads all,
the second finds out what is shared, the others copy it. Medians over the rounds, smallest and largest in brackets.
"""

import argparse
import random
import time
from statistics import median

import torch

from dynts.config import CompressionConfig, ModelSource, Sampling
from dynts.decode import prefixes
from dynts.decode.compress import Session, compress
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.tasks import RowTask
from dynts.models.load import load_model
from dynts.report.tables import markdown_table


def first_tokens(session: Session, shared: list[int], own: int, requests: int, seed: int) -> list[float]:
    """Return the milliseconds to the first token of each request."""
    batch, draw = ContinuousBatch(session, rows=1), random.Random(seed)
    taken = []
    for _ in range(requests):
        prompt = [*shared, *(draw.randrange(10, 1000) for _ in range(own))]
        started = time.perf_counter()
        batch.add(RowTask(prompt, Sampling(1, 0.0), lambda _: True, print))
        while not batch.idle:
            batch.step()
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf-file")
    parser.add_argument("--shared", type=int, default=600, help="tokens that all prompts begin with")
    parser.add_argument("--own", type=int, default=30, help="tokens of each prompt after these")
    parser.add_argument("--requests", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model, _ = load_model(ModelSource(given.model, gguf_file=given.gguf_file, device="cpu"))
    draw = random.Random(0)
    shared = [draw.randrange(10, 1000) for _ in range(given.shared)]
    config = CompressionConfig(2 * (given.shared + given.own) + 200, local_window=64)
    measured: dict[bool, list[list[float]]] = {True: [], False: []}
    least = prefixes.LEAST
    with compress(model, "question-window", config) as session:
        for seed in range(given.rounds):
            for copies in (False, True):
                prefixes.LEAST = least if copies else 1 << 40
                measured[copies].append(first_tokens(session, shared, given.own, given.requests, seed))
    rows = []
    for number in range(given.requests):
        cells = []
        for copies in (False, True):
            times = [taken[number] for taken in measured[copies]]
            cells.append(f"{median(times):.0f} ({min(times):.0f}-{max(times):.0f})")
        rows.append([str(number + 1), *cells])
    print(
        f"{given.shared} tokens shared, {given.own} own, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(markdown_table(["request", "read (ms)", "copied (ms)"], rows))


if __name__ == "__main__":
    main()
