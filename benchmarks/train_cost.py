"""Time and memory of training a predictor, per million tokens; and its share of labelling and training together.

    python benchmarks/train_cost.py --out docs/results
    python benchmarks/train_cost.py --out docs/results --shards shards --label-seconds 2040

Synthetic shards in bfloat16, hidden sizes of SmolLM2-135M (576) and of a 7B model (3584), at two numbers of traces,
because memory must not depend on it. One epoch, after a batch of warm-up; each case in a process of its own. "Extra" is
the peak of the process above what it held when the first trace was about to be read (on an accelerator, the peak of its
allocator); a peak of the imports before may hide some of it on a CPU. With --shards, one epoch of a real folder is
timed, and the share of all epochs in label + train is given; without --label-seconds the labelling is taken to last
from the first shard's time of change to the last one's, which is wrong for a labelling that was interrupted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.training.dataset import load_examples
from dynts.training.fit import fit
from dynts.training.processes import Processes
from dynts.training.shards import Shard, ShardFolder
from dynts.training.train import TrainConfig

SIZES = (576, 3584)
TRACES = (16, 64)
MICRO_TRACES = 4


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="existing folder for train_cost.json and train_cost.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="hidden sizes")
    parser.add_argument("--traces", type=int, nargs="+", default=TRACES)
    parser.add_argument("--tokens", type=int, default=1000, help="of each trace")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--shards", type=Path, help="a real folder written by `dynts label`")
    parser.add_argument("--label-seconds", type=float, help="what its labelling took")
    parser.add_argument("--epochs", type=int, default=TrainConfig().epochs, help="of a whole training")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measure(ShardFolder.open(arguments.case), arguments.device, arguments.bf16)))
        return
    record: dict[str, Any] = {
        "device": arguments.device,
        "bf16": arguments.bf16,
        "micro_traces": MICRO_TRACES,
        "tokens_per_trace": arguments.tokens,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cases": [],
    }
    for size in arguments.sizes:
        for traces in arguments.traces:
            with tempfile.TemporaryDirectory() as work:
                folder = _synthetic(Path(work) / "shards", size, traces, arguments.tokens)
                case = {"hidden_size": size, "traces": traces, **_run(folder.path, arguments)}
            record["cases"].append(case)
            print(case, flush=True)
    if arguments.shards:
        record["real"] = _real(ShardFolder.open(arguments.shards), arguments)
    write_text_whole(arguments.out / "train_cost.json", json.dumps(record, indent=1) + "\n")
    write_text_whole(arguments.out / "train_cost.md", wrap_prose(_page(record)))


def _synthetic(path: Path, size: int, traces: int, tokens: int) -> ShardFolder:
    settings = {"labels": ["answer"], "fingerprint": {"hidden_size": size}, "think_markers": None, "traces_sha256": ""}
    folder = ShardFolder.create(path, settings, {"indices": list(range(traces))})
    rows, ids = torch.arange(tokens), torch.zeros(tokens, dtype=torch.long)
    for index in range(traces):
        hidden = torch.randn(tokens, size, dtype=torch.bfloat16)
        folder.write(index, Shard(hidden, rows, ids, {"answer": torch.rand(tokens)}, {"question": str(index)}))
    return folder


def _run(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--out",
        str(arguments.out),
        "--case",
        str(folder),
        "--device",
        arguments.device,
    ]
    command += ["--bf16"] if arguments.bf16 else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _measure(folder: ShardFolder, device: str, bf16: bool) -> dict[str, float]:
    """One epoch over all traces of a folder."""
    processes = Processes(device=torch.device(device))
    config = TrainConfig(epochs=1, batch_traces=2 * MICRO_TRACES, micro_traces=MICRO_TRACES, bf16=bf16)
    examples = load_examples([folder], "answer", "rank")
    before = psutil.Process(os.getpid()).memory_info().rss
    fit(examples[:MICRO_TRACES], config, processes=processes)
    started = time.perf_counter()
    fit(examples, config, processes=processes)
    seconds = time.perf_counter() - started
    tokens = sum(example.known for example in examples)
    if processes.device.type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) - before
    else:
        peak = torch.get_device_module(processes.device).max_memory_allocated()
    return {"tokens": tokens, "seconds": seconds, "seconds_per_million": seconds / tokens * 1e6, "extra_bytes": peak}


def _real(folder: ShardFolder, arguments: argparse.Namespace) -> dict[str, Any]:
    found = _run(folder.path, arguments)
    label = arguments.label_seconds or _label_seconds(folder)
    training = found["seconds"] * arguments.epochs
    return {
        **found,
        "model": folder.manifest["settings"]["model"],
        "traces": len(folder.indices),
        "epochs": arguments.epochs,
        "label_seconds": label,
        "label_seconds_from": "--label-seconds" if arguments.label_seconds else "times of the files",
        "train_seconds": training,
        "train_share": training / (training + label),
    }


def _label_seconds(folder: ShardFolder) -> float:
    times = [folder.file(index).stat().st_mtime for index in folder.indices]
    return (max(times) - min(times)) * len(times) / max(1, len(times) - 1)


def _page(record: dict[str, Any]) -> str:
    rows = []
    for case in record["cases"]:
        size = case["hidden_size"]
        figures = (f"{case['traces']}", f"{case['tokens']}", f"{case['seconds_per_million']:.1f}")
        rows.append((f"{size}", *figures, f"{case['extra_bytes'] / 2**20:.0f}", f"{48 * size**2 / 2**20:.0f}"))
    columns = (
        "hidden size",
        "traces",
        "tokens",
        "seconds per million tokens",
        "extra MiB",
        "of which 48 d^2 bytes, MiB",
    )
    lines = [
        "# Cost of training a predictor",
        "",
        "Made by `benchmarks/train_cost.py`. One epoch, forward, backward and reading; 48 d^2 bytes are weights, "
        "gradients and the optimizer's two moments.",
        "",
        markdown_table(columns, rows),
    ]
    if real := record.get("real"):
        lines += [
            f"{real['model']}, {real['traces']} traces, {real['tokens']} tokens: {real['label_seconds']:.0f} s for "
            f"labelling ({real['label_seconds_from']}) and {real['train_seconds']:.0f} s for {real['epochs']} epochs, "
            f"{real['train_share']:.1%} of both.",
            "",
        ]
    settings = ("device", "bf16", "micro_traces", "tokens_per_trace", "threads", "torch")
    return "\n".join([*lines, ", ".join(f"{name} {record[name]}" for name in settings), ""])


if __name__ == "__main__":
    main()
