"""`dynts demo`: what it compares, the table, the picture and the command."""

import io
import shlex
import sys
from pathlib import Path

import pytest
from rich.console import Console

from command_line import run
from decoding import random_predictor
from dynts.cache.lengths import Compaction, GenerationStats
from dynts.decode.arm import Arm
from dynts.demo.compare import Result, compare, every_arm
from dynts.extras import pip_install
from dynts.methods import METHODS, DynTSAll
from dynts.methods.window import QuestionWindow
from dynts.report.demo import cache_lengths, results_table
from dynts.tiny import load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import QUESTION_TOKENS, Solution, budget_for, schedule
from dynts.tiny.task import make_problem
from method_table import CASES, EVERY, TABLE


def test_every_method_takes_part_with_the_question_kept() -> None:
    predictors = {label: load_tiny_predictor(label) for label in ("answer", "future")}
    found = every_arm(predictors, native=True)
    # those that ship have seen thinking tokens only
    assert {type(item.method) for item in found} == set(METHODS.values()) - {DynTSAll}
    names = [item.name(question=False) for item in found]
    assert names[:3] == ["full", "dynts, answer label", "dynts, future label"]
    native = [name for name in EVERY if name.endswith("native") and not CASES[name].method.needs_predictor]
    assert [name for name, item in zip(names, found, strict=True) if item.method.granularity == "native"] == native
    assert all(item.method.protect_question for item in found if item.method.name not in ("full", "window"))
    own = random_predictor(native=True, all_tokens=False)
    names = [
        item.name(question=False) for item in every_arm({"answer-native": own}, native=True) if item.predictor is own
    ]
    assert names == [
        "dynts, answer-native label",
        "dynts, answer-native label, native",
        "dynts-bottom",
        "dynts-bottom, native",
    ]
    every = random_predictor()
    names = [item.name(question=False) for item in every_arm({"future": every}, native=True) if item.predictor is every]
    assert names == ["dynts, future label", "dynts-all, future label", "dynts-bottom"]
    published = every_arm(predictors, protect_question=False)
    protecting = [name for name, row in TABLE.items() if row.defaults.get("protect_question")]
    assert [item.name(question=False) for item in published if item.method.protect_question] == [
        "dynts, answer label",
        "dynts, future label",
        *protecting[1:],
    ]


def test_schedule_splits_the_room_as_documented() -> None:
    config = schedule(261)
    room = 261 - QUESTION_TOKENS
    assert config.local_window == round(0.4 * room)
    assert config.selected_tokens(QUESTION_TOKENS) == pytest.approx(0.4 * room, abs=1)


def test_compare_reports_what_was_generated() -> None:
    model, tokenizer = load_tiny_model()
    problems = [make_problem(seed, steps=range(4, 5)) for seed in (5, 6, 7)]
    counts: list[int] = []
    config = schedule(150)
    result = compare(model, tokenizer, problems, Arm(QuestionWindow()), config, batch=2, progress=counts.append)
    assert counts == sorted(counts)
    assert counts[-1] <= 3
    assert len(result.stats) == 2
    assert result.peak_tokens == 150
    assert result.compactions == sum(len(stats.compactions) for stats in result.stats) > 0
    total = sum(solution.tokens for solution in result.solutions)
    assert result.tokens_per_second == pytest.approx(total / result.seconds)
    for solution, problem in zip(result.solutions, problems, strict=True):
        assert solution.tokens == len(tokenizer.tokenize(solution.text)) + solution.finished
        assert solution.prompt_tokens == len(problem.question.split()) + 5


def test_cache_lengths_are_those_of_every_step() -> None:
    stats = GenerationStats(10, 21, [Compaction(5, 15, 8), Compaction(12, 15, 8)], 15, 0)
    length, expected = 10, {0: {10}}
    for step in range(1, 21):
        length += 1
        expected[step] = {length}
        if step in (5, 12):
            length = 8
            expected[step].add(8)
    steps, lengths = cache_lengths(stats)
    assert all(value in expected[step] for step, value in zip(steps, lengths, strict=True))
    assert (steps[-1], lengths[-1]) == (20, length)


@pytest.fixture
def result() -> Result:
    solutions = [Solution("x", True, True, 60, 90, 100), Solution("x", False, False, 60, 300, 300)]
    return Result("dynts, answer label", solutions, [GenerationStats(60, 300, [Compaction(1, 2, 1)], 200, 2**20)], 2.0)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_shows_every_figure_at_any_width(result: Result, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table([result], "title").terminal())
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "0.50" in line)
    assert row.split()[-7:] == ["0.50", "200", "1", "200", "1.0", "1", "200"]
    assert all(word in " ".join(lines) for word in ("dynts,", "answer", "label"))


def test_markdown_has_the_same_figures(result: Result) -> None:
    assert (
        results_table([result]).markdown().splitlines()[-1]
        == "| dynts, answer label | 0.50 | 200 | 1 | 200 | 1.0 | 1 | 200 |"
    )


@pytest.fixture
def short_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out problems have as few definitions as the model still solves, which halves what it writes."""
    monkeypatch.setattr(make_problem, "__defaults__", (range(4, 5),))


@pytest.mark.usefixtures("short_problems")
def test_the_command_compares_and_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    figure, markdown = tmp_path / "f.png", tmp_path / "t.md"
    arguments = ("--problems", 1, "--method", "dynts", "--figure", figure, "--markdown", markdown)
    code, out, err = run(monkeypatch, capsys, "demo", *arguments)
    assert code == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    rows = markdown.read_text().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        "full",
        "dynts, answer label",
        "dynts, future label",
    ]
    assert all(name in out for name in ("full", "dynts, answer label", str(figure)))
    assert "dynts, future label: Pass@1" in err
    assert "\x1b" not in out + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dynts-demo.jsonl", "f.png", "t.md"]
    _, _, after = out.partition("where to go from here:\n")
    steps = [shlex.split(line) for line in after.splitlines() if not line.startswith("#")]
    assert [words[1] for words in steps] == ["demo", "view", "generate"]
    for program, *words in steps:  # as they are
        assert Path(program).name == "dynts"
        assert run(monkeypatch, capsys, *words)[0] == 0
    assert "</html>" in (tmp_path / "dynts-view.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("short_problems")
def test_the_command_shows_one_question(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "demo", "--ask", 4, "--label", "future")
    assert code == 0
    assert f"answer {make_problem(4).answer}: right" in out
    assert f"budget {budget_for(0.4)}" in out
    assert "·" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "nonsense"), "unknown method 'nonsense'"),
        (("--budget", 90), "use a budget of at least"),
        (("--figure", "missing/f.png"), "missing/f.png does not exist"),
        (("--figure", "f.xyz"), "cannot draw f.xyz"),
        (("--ask", "what is love?"), "find"),
        (("--ask", "4", "--method", "full"), "evicts"),
        (("--ask", "4", "--budget", "30"), "budget of at least"),
    ],
)
def test_bad_input_is_refused_before_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, "demo", *arguments)
    assert code == 2
    assert message in err
    assert "Pass@1" not in out + err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("short_problems")
def test_the_demo_runs_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None)
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("dynts.report.demo", "dynts.demo.compare"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    code, out, err = run(monkeypatch, capsys, "demo", "--problems", 1, "--method", "window")
    assert code == 0, err
    assert pip_install("plot") in out
    assert [path.name for path in tmp_path.iterdir()] == ["dynts-demo.jsonl"]
