"""The plan as tables and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dynts.planning.cost import Cost, Planner, Workload
from dynts.planning.recommend import Recommendation
from dynts.report.tables import FigureTable

_COLUMNS = (
    "budget",
    "W_l",
    "r",
    "KV GB a\nsequence",
    "of\nfull",
    "sequences\nthat fit",
    "ms a\nstep",
    "speed-\nup",
    "tokens/s,\nall that fit",
)


def plan_table(costs: Sequence[Cost]) -> FigureTable:
    """Return the table of what schedules cost; the full cache has to be the first."""
    return FigureTable(_COLUMNS, [_cells(cost, costs[0]) for cost in costs])


def plan_lines(planner: Planner, work: Workload, dtype: str, costs: Sequence[Cost]) -> list[str]:
    """Say what the table rests on, a sentence each.

    Args:
        planner: the model on its device.
        work: what is generated.
        dtype: name of the dtype.
        costs: the full cache first.
    """
    shape, hardware, predictor = planner.shape, planner.hardware, planner.predictor
    lines = [
        f"{shape.parameters / 1e9:.2f} billion parameters, {planner.weight_bytes / 1e9:.2f} GB in {dtype}; "
        f"a cached token takes {shape.kv_bytes_per_token(planner.dtype_bytes)} bytes",
        f"questions of {work.question} tokens, {work.length} generated, {work.sequences} at a time; "
        f"{hardware.memory / 1e9:g} GB, {hardware.reserve:.0%} of them reserved, {hardware.bandwidth / 1e12:g} TB/s, "
        f"{hardware.flops / 1e12:g} TFLOPS",
        f"predictor: {predictor.parameters / 1e6:.1f} million parameters, {predictor.bytes / 1e6:.0f} MB, "
        f"{predictor.flops / 1e6:.1f} MFLOPs a token",
    ]
    if state := shape.state_bytes(planner.dtype_bytes):
        lines.append(f"layers that keep a state take {state} bytes a sequence beside, whatever its length")
    if shape.matrix_parameters is None:
        lines.append("a mixture of experts: which weights a step reads depends on the tokens, so no times are given")
    if costs[0].sequences < work.sequences:
        lines.append(
            f"only {costs[0].sequences} sequences fit with the full cache: its step, and so the speed-up, supposes "
            f"memory for {work.sequences}"
        )
    lines += [
        f"budget {cost.schedule.budget}, r {cost.schedule.retention_ratio:g}: {cost.compactions} compactions evict "
        f"{cost.evicted} tokens each; in FLOPs that pays for the scores from {cost.break_even} on (break-even), from "
        f"{planner.break_even(1)} if an eviction lasted for one step only"
        for cost in costs
        if cost.schedule is not None and cost.compactions
    ]
    return lines


def plan_json(
    planner: Planner, work: Workload, dtype: str, costs: Sequence[Cost], recommended: Recommendation
) -> dict[str, Any]:
    """Return everything, in bytes, seconds and tokens.

    Args:
        planner: the model on its device.
        work: what is generated.
        dtype: name of the dtype.
        costs: the full cache first.
        recommended: the setting to start from.
    """
    return {
        "dtype": dtype,
        "shape": asdict(planner.shape),
        "weight_bytes": planner.weight_bytes,
        "kv_bytes_per_token": planner.shape.kv_bytes_per_token(planner.dtype_bytes),
        "predictor": asdict(planner.predictor),
        "hardware": asdict(planner.hardware),
        "workload": asdict(work),
        "costs": [{**_with_schedule(cost), "speedup": speedup(cost, costs[0])} for cost in costs],
        "recommended": _with_schedule(recommended),
    }


def _with_schedule(found: Cost | Recommendation) -> dict[str, Any]:
    """Return all fields, of the schedule those that files record."""
    return {**asdict(found), "schedule": found.schedule and found.schedule.settings()}


def speedup(cost: Cost, full: Cost) -> float | None:
    """Return the speed-up of a mean decode step over the full cache's.

    Args:
        cost: of a schedule.
        full: of the full cache.
    """
    if cost.step_seconds is None or full.step_seconds is None:
        return None
    return full.step_seconds / cost.step_seconds


def _cells(cost: Cost, full: Cost) -> list[str]:
    schedule, gain = cost.schedule, speedup(cost, full)
    return [
        "full cache" if schedule is None else f"{schedule.budget}",
        "" if schedule is None else f"{schedule.local_window}",
        "" if schedule is None else f"{schedule.retention_ratio:g}",
        f"{cost.sequence_bytes / 1e9:.3f}",
        f"{cost.sequence_bytes / full.sequence_bytes:.2f}",
        f"{cost.sequences}",
        "" if cost.step_seconds is None else f"{1000 * cost.step_seconds:.2f}",
        "" if gain is None else f"{gain:.2f}",
        "" if cost.tokens_per_second is None else f"{cost.tokens_per_second:.0f}",
    ]
