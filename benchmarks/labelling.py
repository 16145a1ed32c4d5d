"""Time and memory of labelling a long trace, beside a plain forward pass and beside eager attention weights.

    python benchmarks/labelling.py --out docs/results

SmolLM2-135M's shape with random weights, float32: a trace of 16,384 tokens (`--tokens`) of which 500 are the answer,
and 2,048 tokens through eager attention with output_attentions, which is what one would do without dynts (4,096 tokens
take four times the memory, which not every machine has). Each case runs in a process of its own, cases alternate over
the rounds, and "extra" is the peak of the process above what it held when the model was loaded. Seconds are those that
the processor worked, so that others on the machine count less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from transformers import DynamicCache

from dynts.cache.interface import CACHE
from dynts.models import random_model
from dynts.report.tables import markdown_table
from dynts.store.files import write_text_whole
from dynts.traces.tokens import TokenizedTrace
from dynts.training.labels import label_trace

SHAPE = Path(__file__).parent / "shapes" / "smollm2-135m"
SHORT, CHUNK, ANSWER, QUESTION = 2_048, 4_096, 500, 128


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="existing folder for labelling.json and labelling.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16_384, help="of the trace that is labelled")
    parser.add_argument("--case", choices=CASES, help="measure one case once, and print it")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(_measure(arguments.case, arguments.tokens)))
        return
    if arguments.out is None:
        parser.error("--out is needed")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for number in range(arguments.rounds):
        for name in CASES if number % 2 == 0 else reversed(CASES):
            command = [sys.executable, __file__, "--case", name, "--tokens", str(arguments.tokens)]
            runs[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(name, runs[name][-1], flush=True)
    record = {"tokens": arguments.tokens, "answer": ANSWER, "threads": torch.get_num_threads(), "runs": runs}
    write_text_whole(arguments.out / "labelling.json", json.dumps(record, indent=1) + "\n")
    write_text_whole(arguments.out / "labelling.md", _table(runs))


def _forward(tokens: int) -> None:
    """What labelling cannot do without: all tokens through the decoder with sdpa."""
    model = _model("sdpa")
    cache = DynamicCache(config=model.config)
    ids = torch.ones(1, tokens, dtype=torch.long)
    for part in ids.split(CHUNK, dim=1):
        model.get_decoder()(input_ids=part, **{CACHE: cache}, use_cache=True)


def _label(tokens: int, *labels: str) -> None:
    trace = TokenizedTrace(tuple([1] * tokens), QUESTION, tokens - ANSWER - 1, tokens - ANSWER)
    label_trace(_model("sdpa"), trace, labels)


def _eager(_: int) -> None:
    """Attention weights of all tokens, as `output_attentions` gives them."""
    output = _model("eager")(input_ids=torch.ones(1, SHORT, dtype=torch.long), output_attentions=True)
    for weights in output.attentions:
        weights.mean(dim=(0, 1))


CASES: dict[str, Any] = {
    "forward": _forward,
    "answer label": lambda tokens: _label(tokens, "answer"),
    "both labels": lambda tokens: _label(tokens, "answer", "future"),
    "eager output_attentions, 2k tokens": _eager,
}
_LOADED: dict[str, Any] = {}


def _model(attention: str) -> Any:
    if attention not in _LOADED:
        _LOADED[attention] = random_model(SHAPE)
        _LOADED[attention].set_attn_implementation(attention)
    return _LOADED[attention]


@torch.no_grad()
def _measure(case: str, tokens: int) -> dict[str, float]:
    model = _model("eager" if case.startswith("eager") else "sdpa")
    model(input_ids=torch.ones(1, 16, dtype=torch.long))
    before = psutil.Process(os.getpid()).memory_info().rss
    started = time.process_time()
    CASES[case](tokens)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "extra_bytes": peak - before}


def _table(runs: dict[str, list[dict[str, float]]]) -> str:
    reference = runs["forward"]
    rows = []
    for name, found in runs.items():
        ratio = median(run["seconds"] / plain["seconds"] for run, plain in zip(found, reference, strict=True))
        taken, extra = (median(run[key] for run in found) for key in ("seconds", "extra_bytes"))
        rows.append((name, f"{taken:.1f}", f"{ratio:.2f}", f"{extra / 2**20:.0f} MiB"))
    return markdown_table(("", "seconds", "over the forward pass", "extra memory"), rows)


if __name__ == "__main__":
    main()
