"""Make a report from evaluated arms."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dynts.errors import DyntsError
from dynts.evaluate.metrics import summarize
from dynts.evaluate.results import ArmResults
from dynts.evaluate.voting import AnswerComparison
from dynts.grading.grader import Grader
from dynts.report.arm_figures import draw_budgets, draw_cost, draw_grids, draw_summary
from dynts.report.figures import Look, looks
from dynts.report.groups import (
    EvaluatedArm,
    Group,
    comparable,
    describe_config,
    find_model,
    missing_samples,
    shared_config,
)
from dynts.report.offline import write_page
from dynts.report.page import Picture, page
from dynts.report.tables import plain
from dynts.store.files import write_text_whole, writing_to


def arms_csv(groups: Sequence[Group]) -> str:
    """Return one line an arm, with all metrics."""
    return _csv([_arm_row(group, entry) for group in groups for entry in group.entries])


def samples_csv(groups: Sequence[Group]) -> str:
    """Return one line a sample."""
    return _csv(
        [
            _of_arm(entry.arm) | asdict(sample)
            for group in groups
            for entry in group.entries
            for sample in sorted(entry.arm.samples, key=lambda each: (each.problem_id, each.sample))
        ]
    )


def _of_arm(arm: ArmResults) -> dict[str, Any]:
    settings, config = arm.manifest["settings"], arm.config
    return {
        "benchmark": arm.benchmark,
        "model": settings.get("model"),
        "revision": settings.get("revision"),
        "method": arm.method,
        "budget": config and config.budget,
        "local_window": config and config.local_window,
        "retention_ratio": config and config.retention_ratio,
    }


def _arm_row(group: Group, entry: EvaluatedArm) -> dict[str, Any]:
    row = _of_arm(entry.arm)
    row |= {f"sampling_{name}": value for name, value in entry.arm.manifest["settings"].get("sampling", {}).items()}
    row |= {"group": group.slug, "missing_samples": missing_samples(entry.arm)}
    for name, value in asdict(entry.metrics).items():
        if name == "pass_at_1":
            row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        elif isinstance(value, Mapping):
            row |= {f"{name.removesuffix('_at')}@{k}": share for k, share in value.items()}
        else:
            row[name] = value
    return row


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    # arms with more samples have more columns
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


PAGE_FILE = "report.md"


def check_out(out: Path) -> None:
    """Refuse a place where a report would not fit or would mix with other things.

    Raises:
        DyntsError: it is a file or named like one, or a folder that holds other things.
    """
    if out.suffix.lower() in (".md", ".csv", ".png", ".svg", ".pdf", ".html", ".json"):
        raise DyntsError(
            f"a report is a folder with a page, tables and figures, not a {out.suffix} file: give a folder"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / PAGE_FILE).exists())):
        raise DyntsError(f"{out} exists and is no report: choose a new or empty folder, or that of an earlier report")


def group_arms(arms: Sequence[ArmResults], done: Callable[[], object] = lambda: None) -> list[Group]:
    """Work out the figures of all arms that have samples, and put those together that may be compared.

    Args:
        arms: from any folders.
        done: called after each arm.

    Raises:
        DyntsError: no arm has a sample, or one is there twice.
    """
    begun = [arm for arm in arms if arm.samples]
    if not begun:
        raise DyntsError(f"none of the {len(arms)} arms has a sample yet: run `dynts eval` first")
    sets = comparable(begun)
    repeated = Counter(_slug(each[0].benchmark) for each in sets)
    numbers: Counter[str] = Counter()
    groups = []
    with Grader() as grader:
        same = AnswerComparison(grader)
        for each in sets:
            slug = _slug(each[0].benchmark)
            numbers[slug] += 1
            model = find_model(each[0].manifest["settings"])
            entries = []
            for arm in each:
                entries.append(EvaluatedArm(arm, summarize(arm, same, None if model is None else model.shape)))
                done()
            name = f"{slug}-{numbers[slug]}" if repeated[slug] > 1 else slug
            groups.append(Group(each[0].benchmark, name, model, entries))
    return groups


def write_report(groups: Sequence[Group], out: Path, *, samples: bool = False) -> Path:
    """Write page, CSV and figures; the same groups give the same page and CSV byte for byte.

    Args:
        groups: at least one.
        out: the folder, made if it does not exist.
        samples: also write every sample as a row of a CSV.

    Returns:
        The page as one HTML file.
    """
    look = looks(entry.arm for group in groups for entry in group.entries)
    with writing_to(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
        pictures: dict[str, list[Picture]] = {}
        figures: dict[str, Figure] = {}
        for group in groups:
            pictures[group.slug] = []
            for picture, figure in _pictures(group, look):
                figures[picture.address] = figure
                pictures[group.slug].append(picture)
        write_text_whole(out / "arms.csv", arms_csv(groups))
        if samples:
            write_text_whole(out / "samples.csv", samples_csv(groups))
        return write_page(out / PAGE_FILE, page(groups, pictures), figures)


def _pictures(group: Group, look: Mapping[str, Look]) -> Iterator[tuple[Picture, Figure]]:
    if figure := draw_summary(group, look):
        shown = describe_config(shared_config(group.compressed))
        caption = f"Pass@1 with 95% intervals, and cached tokens, mean over steps and samples; {shown}."
        yield Picture(f"{group.slug}-summary", "Accuracy and cached tokens by method", caption), figure
    if figure := draw_budgets(group, look):
        caption = "95% intervals; points of one budget stand side by side so that they can be told apart."
        yield Picture(f"{group.slug}-budgets", "Pass@1 against the budget", caption), figure
    for method, budget, figure in draw_grids(group):
        title = f"Local window and retention ratio: {method}, budget {budget}"
        name = f"{group.slug}-grid-{_slug(method)}-{budget}"
        yield Picture(name, title, "Pass@1; empty cells were not evaluated."), figure
    if drawn := draw_cost(group, look):
        problem, figure = drawn
        caption = (
            f"First sample of problem {plain(problem)}. The schedule is the same for all methods. Throughput by "
            "generated length is not drawn: a sample's seconds depend on what is generated beside it (`dynts bench` "
            "measures it)."
        )
        yield Picture(f"{group.slug}-steps", "Memory and computation step by step", caption), figure


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-") or "benchmark"
