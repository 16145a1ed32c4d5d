"""The results page of the embedded model, from raw numbers."""

from typing import Any

from dynts.evaluate.intervals import wilson
from dynts.tiny import LABELS
from dynts.training.transforms import TRANSFORMS


def results_page(
    settings: dict[str, Any],
    rows: dict[str, Any],
    methods: list[str],
    budgets: dict[float, int],
    retained: tuple[float, ...],
    logs: list[dict[str, Any]],
) -> str:
    """The page in Markdown.

    Args:
        settings: of the run.
        rows: what was measured, by name.
        methods: in the order of the table.
        budgets: by share of the mean length.
        retained: shares of the thinking tokens in the retention table.
        logs: of the trainings, the shipped one first.
    """
    total, full = settings["problems"], rows["full"]
    lines = [
        "# The embedded model, measured",
        "",
        "Made by `python benchmarks/embedded_model.py --out docs/results`; what the figures mean stands in",
        "[embedded-model](../embedded-model.md).",
        "",
        *_training_tables(logs),
        "",
        "## Pass@1 under a budget",
        "",
        f"{total} held-out problems, greedy, 95% intervals (Wilson). Budgets in % of the mean length of "
        f"{full['sequence_length']:.0f} tokens, {full['thinking_tokens']:.0f} of them thinking.",
        "",
        f"Full cache: {_interval(full['correct'], total)}. No thinking: "
        f"{_interval(rows['no thinking']['correct'], total)}.",
        "",
        f"| method | {' | '.join(f'{share:.0%}: B = {budget}' for share, budget in budgets.items())} |",
        f"|---|{'---|' * len(budgets)}",
    ]
    for key in methods:
        found = [rows.get(f"{key}, {share:.0%}") for share in budgets]
        cells = [_interval(row["correct"], total) if row else "" for row in found]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    retention = rows["retention"]
    lines += [
        "",
        "## Which thinking tokens the answer needs",
        "",
        "Share of right answers when the model, having read its own right trace, answers from the question and a share "
        f"of the thinking tokens; {retention['traces']} traces:",
        "",
        f"| kept | {' | '.join(f'{share:.0%}' for share in retained)} |",
        f"|---|{'---|' * len(retained)}",
    ]
    for name, counts in retention["right"].items():
        shares = " | ".join(f"{count / retention['traces']:.2f}" for count in counts)
        lines.append(f"| {name} | {shares} |")
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in settings.items()), ""])


def _training_tables(logs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Training",
        "",
        f"Pass@1 on {logs[0]['held_out']['problems']} held-out problems at the end:",
        "",
        "| seed | full cache | no thinking | mean thinking tokens | minutes: model | all |",
        "|---|---|---|---|---|---|",
    ]
    for log in logs:
        held_out, minutes = log["held_out"], log["minutes"]
        total = held_out["problems"]
        cells = [_interval(round(held_out[name] * total), total) for name in ("pass@1", "pass@1 without thinking")]
        lines.append(
            f"| {log['seed']} | {' | '.join(cells)} | {held_out['mean thinking tokens']:.0f} "
            f"| {minutes['pretraining']:.0f} | {minutes['held_out']:.0f} |"
        )
    lines += [
        "",
        "On the way (100 validation problems):",
        "",
        "| seed | minutes | tokens | loss | Pass@1 |",
        "|---|---|---|---|---|",
    ]
    for log in logs:
        lines += [
            f"| {log['seed']} | {row['minutes']:.0f} | {row['tokens'] / 1e6:.1f} M | {row['loss']:.4f} | "
            f"{row['pass@1']:.2f} |"
            for row in log["pretraining"]
        ]
    names = ("mse", "kendall_tau", "top20_overlap", "top30_overlap")
    lines += [
        "",
        "## Predictors",
        "",
        "Shipped predictors on held-out traces, beside predictors that see nothing but the token or its place:",
        "",
        f"| label | predictor | {' | '.join(name.replace('_', ' ') for name in names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for label in LABELS:
        for kind, values in logs[0][f"{label}, linear"]["metrics"].items():
            cells = [f"{values[name]:.3f}" for name in names]
            lines.append(f"| {label} | {kind.replace('_', ' ')} | {' | '.join(cells)} |")
    lines += [
        "",
        "Label transforms, Pass@1 on 100 validation problems at 40% of the mean length:",
        "",
        "| seed | label, transform | Kendall tau | top-30% overlap | Pass@1 |",
        "|---|---|---|---|---|",
    ]
    for log in logs:
        for name in (f"{label}, {transform}" for label in LABELS for transform in TRANSFORMS):
            own = log[name]["metrics"]["predictor"]
            quality = f"{own['kendall_tau']:.3f} | {own['top30_overlap']:.3f}"
            lines.append(f"| {log['seed']} | {name} | {quality} | {log[name]['pass@1']:.2f} |")
    return lines


def _interval(right: int, total: int) -> str:
    found = wilson(right, total)
    return f"{right / total:.3f} ({found.low:.2f}-{found.high:.2f})"
