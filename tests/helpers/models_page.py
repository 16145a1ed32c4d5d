"""The tables of docs/reference/models.md: what dynts does with every causal language model of transformers.

`make models` writes them.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from pathlib import Path

import torch
import transformers

from dynts.methods import METHODS
from every_model import MODEL_TYPES, NOT_TRIED
from model_check import CALIBRATED, Found, check

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
FIRST, LAST = "## Models that run\n", "## Loading\n"


def version() -> str:
    """The version of transformers that the page speaks of."""
    return PAGE.read_text(encoding="utf-8").split("transformers ", 1)[1].split(",")[0]


def row(model_type: str, found: Found) -> str:
    """The line of a type that runs."""
    cells = (
        f"`{model_type}`",
        ", ".join(found.layers),
        _methods(found.methods),
        _native(found),
        "yes" if found.padded else "no",
        "yes" if found.fixed else "no",
    )
    return f"| {' | '.join(cells)} |\n"


def _methods(accepted: list[str]) -> str:
    others = [name for name in METHODS if name not in (*accepted, *CALIBRATED)]
    return "all" if not others else f"all but {', '.join(others)}"


def _native(found: Found) -> str:
    """Which of the methods that have it can keep sets of tokens for each head."""
    could = [name for name in found.methods if "granularity" in METHODS[name].__dataclass_fields__]
    return "yes" if found.native == could else "no" if not found.native else ", ".join(found.native)


def tables(found: dict[str, Found]) -> str:
    """Both tables, and what was not tried."""
    runs = "".join(row(kind, each) for kind, each in found.items() if each.reason is None)
    refused = defaultdict(list)
    for kind, each in found.items():
        if each.reason is not None:
            refused[each.reason].append(f"`{kind}`")
    reasons = "".join(f"| {reason} | {', '.join(kinds)} |\n" for reason, kinds in sorted(refused.items(), key=_size))
    untried = "".join(f"| {reason} | `{kind}` |\n" for kind, reason in NOT_TRIED.items())
    without = sum(map(len, refused.values()))
    return (
        f"{FIRST}\n{counted(len(found) - without, without)}\n\n"
        "| model type | layers | methods | native | padded batches | fixed shape |\n"
        f"| --- | --- | --- | --- | --- | --- |\n{runs}\n"
        f"## Models that are refused\n\n| why | model types |\n| --- | --- |\n{reasons}\n"
        f"Not tried, for no tiny model of them could be built:\n\n| why | model type |\n| --- | --- |\n{untried}\n"
    )


def counted(run: int, refused: int) -> str:
    """How many types there are of which fate."""
    untried = len(NOT_TRIED)
    return f"{run} of {run + refused + untried} types run, {refused} are refused, and {untried} were not tried."


def _size(item: tuple[str, list[str]]) -> tuple[int, str]:
    return -len(item[1]), item[0]


def write(found: dict[str, Found]) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(FIRST)
    _, last, after = rest.partition(LAST)
    PAGE.write_text(f"{before}{tables(found)}{last}{after}", encoding="utf-8")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = {}
    for kind in MODEL_TYPES:
        if kind not in NOT_TRIED:
            results[kind] = check(kind)
            print(json.dumps([kind, vars(results[kind])]), flush=True)
    if transformers.__version__ != version():
        sys.exit(f"docs/reference/models.md speaks of transformers {version()}, this is {transformers.__version__}")
    write(results)
