"""Tables of evaluated arms: accuracy, cost, and paired comparisons."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from dynts.config import CompressionConfig
from dynts.evaluate.intervals import Estimate
from dynts.evaluate.metrics import tokens_per_second
from dynts.evaluate.paired import Comparison, compare, holm
from dynts.evaluate.results import ArmResults
from dynts.report.groups import EvaluatedArm, Group, missing_samples
from dynts.report.tables import FigureTable, markdown_table, plain

_COLUMNS = (
    "benchmark: method",
    "budget",
    "Pass@1",
    "n",
    "mean\nlength",
    "closed\nthinking",
    "trun-\ncated",
    "compac-\ntions",
    "peak KV\ntokens",
    "tokens\n/s",
)


def arms_table(arms: Iterable[ArmResults]) -> FigureTable:
    """Return a short table of arms, with means over their samples."""
    return FigureTable(_COLUMNS, [_cells(arm) for arm in arms])


def graded_by(arms: Iterable[ArmResults]) -> str:
    """Whose verdicts count, and of how many samples the other grader thinks otherwise."""
    arms = list(arms)
    samples = [sample for arm in arms for sample in arm.samples]
    differing = sum(sample.graders_differ for sample in samples)
    names = " and ".join(sorted({arm.grader for arm in arms}))
    return f"graded by {names}; dynts and Math-Verify alone differ in {differing} of {len(samples)} verdicts"


def _cells(arm: ArmResults) -> tuple[str, ...]:
    samples, count = arm.samples, max(len(arm.samples), 1)
    tokens = sum(sample.generated_tokens for sample in samples)
    return (
        f"{arm.benchmark}: {arm.method}",
        "-" if arm.config is None else str(arm.config.budget),
        f"{sum(sample.correct for sample in samples) / count:.3f}",
        str(len(samples)),
        f"{tokens / count:.0f}",
        "-"
        if any(sample.closed is None for sample in samples)
        else str(sum(bool(sample.closed) for sample in samples)),
        str(sum(not sample.finished for sample in samples)),
        f"{sum(sample.compactions for sample in samples) / count:.1f}",
        str(max((sample.peak_tokens for sample in samples), default=0)),
        f"{tokens_per_second(samples):.0f}" if samples else "-",
    )


Adjusted = list[tuple[Comparison, float]]
"""Comparisons of one family, each with its p adjusted for the others."""


def against_full(group: Group) -> Adjusted:
    """Compare every arm with a budget with the full cache."""
    return [] if group.full is None else _family(group.compressed, group.full)


def against_best(group: Group) -> Adjusted:
    """Compare all others of a budget, window and ratio with the arm of the highest Pass@1."""
    found: Adjusted = []
    for config in dict.fromkeys(entry.config for entry in group.compressed):
        entries = [entry for entry in group.compressed if entry.config == config]
        best = max(entries, key=lambda entry: entry.metrics.pass_at_1.value)
        found += _family([entry for entry in entries if entry is not best], best)
    return found


def _family(entries: Sequence[EvaluatedArm], other: EvaluatedArm) -> Adjusted:
    comparisons = list(_compared(entries, other))
    return list(zip(comparisons, holm([each.p for each in comparisons]), strict=True))


def _compared(entries: Sequence[EvaluatedArm], other: EvaluatedArm) -> Iterator[Comparison]:
    answered = {sample.problem_id for sample in other.arm.samples}
    for entry in entries:
        # arms that have only begun may share no question
        if any(sample.problem_id in answered for sample in entry.arm.samples):
            yield compare(entry.arm, other.arm)


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
    """Return the table of paired tests, each with its adjusted p."""
    columns = (*_ARM, "compared with", "questions", "difference (95%)", "test", "p", "p (Holm)", "verdict")
    return markdown_table(columns, [_comparison_cells(found, adjusted) for found, adjusted in comparisons])


def with_prefix(value: float) -> str:
    """Write a number with three significant digits and an SI prefix."""
    size, prefix = next((each for each in _SIZES if value >= each[0]), (1.0, ""))
    return f"{value / size:.3g} {prefix}".strip()


def _accuracy_cells(entry: EvaluatedArm, most: int) -> list[str]:
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
        plain(found.other.method),
        f"{found.questions}",
        _interval(found.difference, "+.3f"),
        found.test,
        _probability(found.p),
        _probability(adjusted),
        found.verdict(adjusted),
    ]


def _arm_cells(method: str, config: CompressionConfig | None) -> list[str]:
    if config is None:
        return [plain(method), "", "", ""]
    return [plain(method), f"{config.budget}", f"{config.local_window}", f"{config.retention_ratio:.3g}"]


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
