"""A leaderboard: methods by compression, one line a figure in a CSV file, and the page made from it."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

from dynts.errors import DyntsError
from dynts.report.groups import EvaluatedArm, Group
from dynts.report.prose import wrap_prose
from dynts.report.tables import markdown_table, plain
from dynts.store.files import write_text_whole

PASS_AT_1 = "Pass@1"
FULL = "full"
"""The method that everything is compared with: its compression is 1."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a method does on one kind of work at one compression.

    Args:
        model: what generates.
        work: the benchmark, and how tokens are drawn.
        figure: what is measured, such as "Pass@1" (higher is better) or "KL of the answer" (lower is better).
        method: the arm, such as "dynts, future label".
        compression: mean length of a sequence with the full cache over the budget; 1 for the full cache.
        value: of the figure.
        low: lower end of its 95% interval.
        high: upper end.
        problems: or traces that it was measured on.

    Raises:
        DyntsError: the compression or the value is not a number.
    """

    model: str
    work: str
    figure: str
    method: str
    compression: float
    value: float
    low: float
    high: float
    problems: int

    def __post_init__(self) -> None:
        for name in ("compression", "value"):
            if not math.isfinite(getattr(self, name)):
                raise DyntsError(f"{name} of {self.method} must be a finite number, got {getattr(self, name)}")

    @property
    def place(self) -> tuple[str, str, str, str, float]:
        """What tells it from other standings: one with the same takes its place."""
        # of the number that the file holds, or what is added twice could have two places
        times = round(float(_shortened(self.compression)), 1)
        return self.model, self.work, self.figure, self.method, times

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""
        return self.figure == PASS_AT_1


def standings_of(groups: Sequence[Group]) -> list[Standing]:
    """Return the standings of evaluated arms.

    Args:
        groups: each with the full cache, against whose mean length budgets are set.

    Raises:
        DyntsError: a group lacks the full cache, or two arms would have the same place.
    """
    found: dict[tuple[str, str, str, str, float], tuple[Standing, EvaluatedArm]] = {}
    for group in groups:
        if group.full is None:
            raise DyntsError(
                f"{group.benchmark} was not evaluated with the full cache, so nobody knows by how much its arms "
                "compress: run the same `dynts eval` with --method full too"
            )
        settings = group.full.arm.manifest["settings"]
        model = settings.get("gguf_file") or Path(settings["model"]).name
        temperature = settings.get("sampling", {}).get("temperature")
        drawn = "greedy" if temperature == 0 else f"temperature {temperature}"
        length = fmean(sample.prompt_tokens + sample.generated_tokens for sample in group.full.arm.samples)
        for entry in group.entries:
            times = 1.0 if entry.config is None else length / entry.config.budget
            own = _standing(model, f"{group.benchmark}, {drawn}", entry, times)
            if own.place in found:
                raise DyntsError(
                    f"a leaderboard has one place for {own.method} at {times:.1f} times on {own.work}, which the arms "
                    f"in {found[own.place][1].arm.folder} and {entry.arm.folder} would share: report one of them"
                )
            found[own.place] = own, entry
    return [own for own, _ in found.values()]


def _standing(model: str, work: str, entry: EvaluatedArm, times: float) -> Standing:
    found, questions = entry.metrics.pass_at_1, entry.metrics.questions
    return Standing(model, work, PASS_AT_1, entry.method, times, found.value, found.low, found.high, questions)


def update_leaderboard(path: Path, standings: Iterable[Standing]) -> None:
    """Add standings to a leaderboard, in place of those that they repeat, and write its page beside it.

    Args:
        path: the CSV file, made if it is not there; the page has the same name and ends with .md.
        standings: to add.

    Raises:
        DyntsError: the file is no CSV file, or not a leaderboard.
    """
    known = {each.place: each for each in read_leaderboard(path)}
    known |= {each.place: each for each in standings}
    ordered = sorted(known.values(), key=lambda each: each.place)
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Standing)], lineterminator="\n")
    writer.writeheader()
    for each in ordered:
        row = asdict(each).items()
        writer.writerow({name: _shortened(value) if isinstance(value, float) else value for name, value in row})
    write_text_whole(path, text.getvalue())
    write_text_whole(path.with_suffix(".md"), leaderboard_page(ordered))


def read_leaderboard(path: Path) -> list[Standing]:
    """Read a leaderboard, an empty one where there is no file yet.

    Args:
        path: the CSV file.

    Raises:
        DyntsError: the path does not end with .csv, or the file is not a leaderboard; the line that is wrong is named.
    """
    if path.suffix != ".csv" or path.is_dir():
        raise DyntsError(f"a leaderboard is a .csv file, with a page of the same name beside it; {path} is none")
    if not path.exists():
        return []
    names = [field.name for field in fields(Standing)]
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets may put a mark before the first line
    except UnicodeDecodeError as error:
        raise DyntsError(f"{path} is not a leaderboard: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != names:
        raise DyntsError(f"{path} is not a leaderboard: its first line must be {','.join(names)}")
    found = []
    for line in reader:
        try:
            texts = (line[name] for name in names[:4])
            numbers = (float(line[name]) for name in names[4:-1])
            found.append(Standing(*texts, *numbers, int(line["problems"])))  # type: ignore[call-arg, arg-type]
        except (TypeError, ValueError) as error:
            raise DyntsError(f"line {reader.line_num} of {path} is not a standing: {error}") from error
    return found


def leaderboard_page(standings: Sequence[Standing]) -> str:
    """Return the page: a table for each model, kind of work and figure, methods by compression.

    Args:
        standings: at least one.
    """
    lines = [
        "# Leaderboard",
        "",
        "How much of the full cache's quality each method keeps, by how many times it compresses: the mean length of a "
        "sequence over the budget. 95% intervals in brackets. Made by `dynts report --leaderboard` and "
        "`benchmarks/leaderboard.py`; add yours with `dynts report RESULTS --out REPORT --leaderboard FILE.csv`.",
        "",
    ]
    for key in dict.fromkeys((each.model, each.work, each.figure) for each in standings):
        shown = [each for each in standings if (each.model, each.work, each.figure) == key]
        lines += [f"## {plain(key[0])}: {plain(key[1])}", "", f"{_described(shown)}.", "", _table(shown)]
    return wrap_prose("\n".join(lines))


def _described(shown: Sequence[Standing]) -> str:
    counts = sorted({each.problems for each in shown})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    better = "higher" if shown[0].higher_is_better else "lower"
    full = next((each for each in shown if each.method == FULL), None)
    beside = "" if full is None else f"; full cache {_cell(full)}"
    return f"{plain(shown[0].figure)} ({better} is better), {number} problems{beside}"


def _table(shown: Sequence[Standing]) -> str:
    """Methods, the best at the hardest compression that most of them were measured at first, by compressions."""
    compressed = [each for each in shown if each.method != FULL]
    times = sorted({round(each.compression, 1) for each in compressed})
    found = {(each.method, round(each.compression, 1)): each for each in compressed}
    methods = list(dict.fromkeys(each.method for each in compressed))
    sign = -1 if compressed and compressed[0].higher_is_better else 1

    def rank(method: str) -> float:
        places = []
        for each in times:
            if (method, each) in found:
                column = sorted(sign * found[other, each].value for other in methods if (other, each) in found)
                places.append(column.index(sign * found[method, each].value) / len(column))
        return fmean(places)

    rows = [
        [plain(method), *(_cell(found[method, each]) if (method, each) in found else "-" for each in times)]
        for method in sorted(methods, key=rank)
    ]
    return markdown_table(["method", *(f"{each:g} times" for each in times)], rows)


def _cell(each: Standing) -> str:
    if each.higher_is_better:
        return f"{each.value:.1%} ({each.low:.1%} to {each.high:.1%})"
    return f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f})"


def _shortened(number: float) -> str:
    return f"{number:.4g}"
