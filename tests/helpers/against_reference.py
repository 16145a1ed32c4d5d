"""What a conversation under dynts gave, row by row beside the reference (`reference.py`)."""

from dataclasses import asdict

import torch

import dynts
from decoding import TOLERANCE, Talk
from method_table import CASES
from reference import ReferenceRun, Turn, reference_generate

CONFIG = dynts.CompressionConfig(budget=28, local_window=6, retention_ratio=0.4)


def reference_of(
    model: object, name: str, turns: list[Turn], forced: list[list[int]], config: dynts.CompressionConfig = CONFIG
) -> ReferenceRun:
    """The reference run of one row along the tokens that dynts chose."""
    return reference_generate(
        model,  # type: ignore[arg-type]
        turns,
        **asdict(config),
        forced=forced,
        **CASES[name].options,
    )


def kept_of_row(talk: Talk, row: int) -> list[torch.Tensor]:
    """The positions that one row kept, for the compactions in which it evicted something."""
    kept, before = [], None
    for positions in talk.session.kept_positions:
        own = positions[..., row, :] if positions.ndim == 2 else positions[:, row]
        live = own[own >= 0].view(*own.shape[:-1], -1)
        highest = int(live.max())
        known = before if before is not None else torch.empty(*live.shape[:-1], 0, dtype=torch.long)
        fresh = torch.arange(int(known.max()) + 1 if known.numel() else 0, highest + 1)
        cached = torch.cat([known, fresh.expand(*live.shape[:-1], -1)], dim=-1)
        if live.shape[-1] < cached.shape[-1]:
            kept.append(live)
        before = live
    return kept


STATES_TOLERANCE = 1e-4
"""Of logits of models that keep a state: what a step puts into it, rounded, is in all that follow. On a CPU with AVX2
alone a tiny Qwen3.5 comes to 3.3e-5, without eviction transformers' own steps to 9e-6 beside one pass over the text."""


def check_row(talk: Talk, row: int, run: ReferenceRun, tolerance: float = TOLERANCE) -> None:
    """One row's logits and kept positions are those of the reference."""
    kept = kept_of_row(talk, row)
    assert len(kept) == len(run.kept_positions)
    for ours, theirs, margin in zip(kept, run.kept_positions, run.margins, strict=True):
        assert ours.tolist() == theirs.tolist(), f"the choice was decided by {margin}; below 1e-7 blame rounding"
    for turn, logits in enumerate(run.logits):
        difference = (talk.logits[turn][row] - logits).abs().max().item()
        assert difference < tolerance, f"turn {turn}: logits differ by {difference}"
