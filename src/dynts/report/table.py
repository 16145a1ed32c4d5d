"""The tables of the page."""

from collections.abc import Callable, Sequence

from dynts.config import CompressionConfig
from dynts.evaluate.intervals import Estimate
from dynts.evaluate.paired import Comparison
from dynts.report.group import Entry, Group, missing_samples
from dynts.tables import markdown_table

_ARM = ("method", "budget", "local window", "retention ratio")
_SIZES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def accuracy_table(group: Group) -> str:
    """Accuracy, and what has to be read beside it."""
    most = min(max(entry.metrics.pass_at) for entry in group.entries)
    several = (f"pass@{most}", f"maj@{most}") if most > 1 else ()
    columns = (
        *_ARM,
        "questions",
        "samples",
        "Pass@1 (95%)",
        *several,
        "mean length",
        "closed thinking",
        "truncated",
        "compactions",
    )
    return markdown_table(columns, [_accuracy_cells(entry, most) for entry in group.entries])


def cost_table(group: Group) -> str:
    """Memory, time and computation; in brackets as a multiple of the full cache's."""
    costs = [cost for cost in _COSTS if getattr(group.entries[0].metrics, cost[1]) is not None]
    columns = (*_ARM, *(name for name, _, _ in costs))
    rows = []
    for entry in group.entries:
        cells = _arm_cells(entry.method, entry.config)
        for _, attribute, show in costs:
            value = getattr(entry.metrics, attribute)
            cells.append(show(value))
            if entry.config is not None and group.full is not None:
                cells[-1] += f" ({value / getattr(group.full.metrics, attribute):.2f})"
        rows.append(cells)
    return markdown_table(columns, rows)


def comparison_table(comparisons: Sequence[tuple[Comparison, float]]) -> str:
    """Paired tests, each with its adjusted p."""
    columns = (*_ARM, "compared with", "questions", "difference (95%)", "test", "p", "p (Holm)", "verdict")
    return markdown_table(columns, [_comparison_cells(found, adjusted) for found, adjusted in comparisons])


def with_prefix(value: float) -> str:
    """Three significant digits and an SI prefix."""
    size, prefix = next((each for each in _SIZES if value >= each[0]), (1.0, ""))
    return f"{value / size:.3g} {prefix}".strip()


def _accuracy_cells(entry: Entry, most: int) -> list[str]:
    metrics = entry.metrics
    missing = missing_samples(entry.arm)
    several = [f"{metrics.pass_at[most]:.3f}", f"{metrics.maj_at[most]:.3f}"] if most > 1 else []
    return [
        *_arm_cells(entry.method, entry.config),
        f"{metrics.questions}",
        f"{metrics.samples}, **{missing} missing**" if missing else f"{metrics.samples}",
        _interval(metrics.pass_at_1, ".3f"),
        *several,
        f"{metrics.mean_length:.0f}",
        "-" if metrics.closed is None else f"{metrics.closed:.1%}",
        f"{metrics.truncated:.1%}",
        f"{metrics.compactions:.1f}",
    ]


def _comparison_cells(found: Comparison, adjusted: float) -> list[str]:
    return [
        *_arm_cells(found.arm.method, found.arm.config),
        found.other.method,
        f"{found.questions}",
        _interval(found.difference, "+.3f"),
        found.test,
        _probability(found.p),
        _probability(adjusted),
        found.verdict(adjusted),
    ]


def _arm_cells(method: str, config: CompressionConfig | None) -> list[str]:
    if config is None:
        return [method, "", "", ""]
    return [method, f"{config.budget}", f"{config.local_window}", f"{config.retention_ratio:.3g}"]


def _interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _mib(value: float) -> str:
    return f"{value / 2**20:.3g}" if value < 2**30 else f"{value / 2**20:.0f}"


_COSTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("peak KV tokens", "peak_tokens", "{:.0f}".format),
    ("mean KV tokens", "mean_tokens", "{:.0f}".format),
    ("peak KV MiB", "peak_bytes", _mib),
    ("mean peak KV MiB", "mean_peak_bytes", _mib),
    ("latency, s", "latency", "{:.3g}".format),
    ("tokens/s", "tokens_per_second", "{:.4g}".format),
    ("FLOPs a step", "flops_per_step", with_prefix),
    ("FLOPs a sample", "flops", with_prefix),
)
"""Column, figure, and how to show it."""
