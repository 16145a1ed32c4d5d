"""Decode speed under a budget beside the full cache, the peers' engines and the bandwidth of the machine.

    python benchmarks/decode_speed.py --out docs/results

Profile mode of `dynts bench` with the engines of `peer_engines.py` beside: SmolLM2-135M's shape with random weights in
float32, 128 question tokens, 16,384 generated ones, a budget of 3,000. Nothing else should run on the machine.
"""

import argparse
from pathlib import Path

import torch
from peer_engines import GatherEngine, HeldEngine
from rich.console import Console

from dynts.bench.engines import TimedDynTS, TimedEngine, TimedTransformers
from dynts.bench.grid import Effort, measure
from dynts.bench.machine import measure_machine
from dynts.bench.profile import Work
from dynts.config import CompressionConfig
from dynts.models import random_model
from dynts.predictor.model import ImportancePredictor
from dynts.report.bench import bench_json, bench_table, draw_steps
from dynts.report.figures import save_figure
from dynts.store.files import write_text_whole

SHAPE = Path(__file__).parent / "shapes" / "smollm2-135m"
SCHEDULE = CompressionConfig(budget=3000, local_window=1500, retention_ratio=0.4)
PROMPT, GENERATED = 128, 16_384


def compared(eager: bool) -> list[TimedEngine]:
    """The reference, the same engine without eviction, dynts plain and compiled, and what they are measured against."""
    model = random_model(SHAPE)
    predictor = ImportancePredictor.for_model(model).eval()
    engines: list[TimedEngine] = [
        TimedTransformers("transformers, sdpa", model, "sdpa"),
        TimedDynTS("dynts without eviction", model, SCHEDULE, "full"),
        TimedDynTS("dynts", model, SCHEDULE, "dynts", predictor),
        TimedDynTS("dynts, compiled", model, SCHEDULE, "dynts", predictor, compile=True),
        HeldEngine("held at the same lengths", model, SCHEDULE),
        GatherEngine("gather, sdpa", model, "sdpa", SCHEDULE),
    ]
    if eager:
        engines.append(GatherEngine("gather, eager", model, "eager", SCHEDULE))
    return engines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for decode_speed.json, .md and .png")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--eager", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    console = Console(width=150)
    machine = measure_machine(torch.device("cpu"), torch.float32)
    console.print(machine.describe(), highlight=False)
    effort = Effort("profile", arguments.rounds, arguments.steps, arguments.points)
    works = [Work(batch, PROMPT, GENERATED) for batch in arguments.batch]
    rows = []
    for found in measure([compared(arguments.eager)], works, effort, machine):
        console.print(bench_table(found).terminal())
        rows += found
        write_text_whole(arguments.out / "decode_speed.json", bench_json(rows, machine, PROMPT))
        text = f"{machine.describe()}\n\n{bench_table(rows).markdown()}"
        write_text_whole(arguments.out / "decode_speed.md", text)
        save_figure(draw_steps(rows), arguments.out / "decode_speed.png")


if __name__ == "__main__":
    main()
