"""Decode steps on a GPU: are they exact, and how near do they come to the speed of its memory?

    python benchmarks/gpu.py --out docs/results [--sections steps,generate] [--no-compile] [--minutes 8]

One card, no downloads: DeepSeek-R1-Distill-Qwen-7B's shape with random weights in bfloat16, on an H100 or H200 in at
most `--minutes`, of which each section has its share; what does not fit is named. Sections print as they go, and after
each measurement gpu.json and gpu.md are written. Without a GPU a tiny shape in float32 takes the same way, in seconds:
its figures mean nothing, but what runs there will run on the day that a card is at hand. Nothing else should run on the
card.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS
from gpu_sections.bench import LARGE, TINY, Bench, attempt
from gpu_sections.page import line_of, page_of, targets

from dynts.decode.recorded import forget_steps
from dynts.report.prose import wrap_prose
from dynts.store.files import write_text_whole
from dynts.store.manifest import versions


def main(words: Sequence[str] | None = None) -> None:
    """Command line.

    Args:
        words: the arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for gpu.json and gpu.md")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, with commas between")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compile=True too (default: on CUDA)")
    parser.add_argument("--minutes", type=float, default=8)
    arguments = parser.parse_args(words)
    chosen = arguments.sections.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if not arguments.out.is_dir():
        parser.error(f"--out {arguments.out} is no existing folder")
    began = time.monotonic()
    on_cuda = torch.cuda.is_available()
    compile = on_cuda if arguments.compile is None else arguments.compile
    bench = Bench(torch.device("cuda" if on_cuda else "cpu"), LARGE if on_cuda else TINY, compile)
    record = conditions(bench)
    print(bench.machine.describe(), flush=True)
    shares = {name: share for name, (_, share) in SECTIONS.items() if name in chosen}
    due = began
    for name in shares:
        # what a section leaves of its share goes to those after it
        due += 60 * arguments.minutes * shares[name] / sum(shares.values())
        rows = record["sections"][name] = []
        for case, measure in SECTIONS[name][0](bench):
            late = time.monotonic() > due
            row = case | ({"left out": "the section's time was over"} if late else attempt(measure))
            forget_steps(bench.model)
            if on_cuda:
                torch.cuda.empty_cache()
            rows.append(row)
            print(f"[{time.monotonic() - began:5.0f} s] {name}: {line_of(row)}", flush=True)
            record |= {"targets": targets(record["sections"]), "seconds": time.monotonic() - began}
            write_text_whole(arguments.out / "gpu.json", json.dumps(record, indent=1) + "\n")
            write_text_whole(arguments.out / "gpu.md", wrap_prose(page_of(record)))
    for row in record["targets"]:
        print(line_of(row))


def conditions(bench: Bench) -> dict[str, Any]:
    """What the figures depend on, and an empty record of them."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    sizes = bench.sizes
    return {
        "machine": asdict(bench.machine),
        "versions": versions() | {"cudnn": cudnn, "cuda": torch.version.cuda},
        "attention": bench.model.config._attn_implementation,
        "shape": sizes.shape,
        "schedule": sizes.schedule.describe(),
        "prompt": sizes.prompt,
        "targets": [],
        "sections": {},
    }


if __name__ == "__main__":
    main()
