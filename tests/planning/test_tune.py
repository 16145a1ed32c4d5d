"""Tuning on the embedded model: rows are what replays give, an interrupted run continues, the rule chooses as
documented."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import dynts
from command_line import run
from dynts.config import CompressionConfig, load_settings
from dynts.evaluate.replay import replay
from dynts.planning import replays
from dynts.planning import tune as tuning
from dynts.planning.frontier import FrontierPoint, choose, frontier, total_variation
from dynts.planning.replays import MeasuredReplay, MeasuredReplays
from dynts.planning.tune import settings_grid
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import read_traces
from recipes.embedded_model.solution import write_response
from tiny import tiny_model

GRID = ("--budgets", "150,200", "--windows", "0.3", "--ratios", "0.4,0.6")
LAX = ("--tolerance", "50", "--thinking-tolerance", "50")
NATIVE = ("--method", "snapkv", "--granularity", "native")
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def traces(write_lines: Callable[..., Path]) -> Path:
    """As the model was trained to write them."""
    rows = []
    for seed in PREDICTOR[:3]:
        problem = make_problem(seed, steps=range(5, 7))
        response = write_response(problem)
        rows.append({"id": f"{seed}", "question": problem.question, "response": response, "answer": problem.answer})
    return write_lines([*rows, {"question": "a", "response": "never ends", "answer": "1"}], "traces.jsonl")


@pytest.fixture
def tune(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    fixed = ("--model", WEIGHTS, "--device", "cpu", "--traces", traces, "--out", tmp_path / "out")
    predictor = ("--predictor", WEIGHTS / "answer")
    return lambda *arguments: run(monkeypatch, capsys, "tune", *fixed, *predictor, *arguments)


def test_rows_settings_and_frontier(tune: Command, traces: Path, tmp_path: Path) -> None:
    code, out, err = tune(*GRID, *LAX)
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out" / "replays.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 4
    assert len({(row["trace"], row["budget"], row["retention_ratio"]) for row in rows}) == len(rows)
    model, tokenizer = load_tiny_model()
    config = CompressionConfig(150, 45, 0.6)
    session = dynts.compress(model, "dynts", config, load_tiny_predictor("answer"), tokenizer=tokenizer)
    for trace in read_traces(traces)[:3]:
        tokens = tokenize_trace(tokenizer, trace)
        found = replay(session, tokens)
        [row] = [row for row in rows if row["trace"] == trace.id and MeasuredReplay(**row).setting == config]
        assert row["kl"] == pytest.approx(float(found.kl.mean()))
        assert row["log_likelihood"] == pytest.approx(float(found.log_likelihood.mean()))
        assert row["loss"] == pytest.approx(float(found.loss.mean()))
        assert row["thinking_loss"] == pytest.approx(float(found.thinking_loss.mean()))
        assert row["log_likelihood"] + row["loss"] >= -0.1  # the model knows its task
        assert (row["tokens"], row["answer_tokens"]) == (len(tokens.ids), len(tokens.ids) - tokens.answer_start)
        assert row["thinking_tokens"] == tokens.answer_start - tokens.question_end
        assert row["compactions"] == found.compactions > 0
    settings = load_settings(tmp_path / "out" / "settings.json")
    assert settings.method == "dynts"
    assert settings.predictor == str(WEIGHTS / "answer")
    smallest = [row for row in rows if row["budget"] == 150]
    losses = {
        ratio: sum(row["thinking_loss"] for row in smallest if row["retention_ratio"] == ratio) for ratio in (0.4, 0.6)
    }
    assert settings.config == CompressionConfig(150, 45, min(losses, key=losses.__getitem__))
    assert settings.config.describe() in out
    page = (tmp_path / "out" / "frontier.md").read_text()
    assert next(line.split()[1] for line in page.splitlines() if line.startswith("| ")) == "budget"
    assert sum(line.startswith("| ") for line in page.splitlines()) == 1 + 4
    assert settings.config.describe() in page
    assert out.splitlines()[-1] == f"page: {tmp_path / 'out' / 'frontier.html'}"
    assert (tmp_path / "out" / "frontier.html").exists()
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_and_cut_off_runs_continue(tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return replay(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(replays, "replay", interrupted)
        code, _, err = tune(*GRID)
    assert code == 130
    assert "run the same command again" in err
    file = tmp_path / "out" / "replays.jsonl"
    assert len(file.read_text().splitlines()) == 5
    file.write_bytes(file.read_bytes()[:-20])  # as a kill would leave it
    with monkeypatch.context() as patch:
        patch.setattr(replays, "replay", lambda *arguments: calls.append(arguments) or replay(*arguments))
        code, _, err = tune(*GRID, *LAX)
    assert code == 0, err
    assert len(calls) == 6 + 12 - 4
    rows = [MeasuredReplay(**json.loads(line)) for line in file.read_text().splitlines()]
    assert len({(row.trace, row.setting) for row in rows}) == len(rows) == 12


def test_finished_runs_load_no_model_and_more_settings_are_added(
    tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(*GRID, "--limit", 1, *LAX)[0] == 0
    file = tmp_path / "out" / "replays.jsonl"
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "load_model", None)
        code, _, err = tune(*GRID, "--limit", 1, "--tolerance", 1e-9)
    assert code == 2
    assert "no setting is within the tolerances of 1e-09" in err
    assert not (tmp_path / "out" / "settings.json").exists()  # that of the other tolerance would mislead
    assert file.read_bytes() == before
    assert tune("--budgets", "150,600", "--windows", 0.3, "--ratios", 0.4, "--limit", 1, "--tolerance", 1e-6)[0] == 0
    assert file.read_bytes().startswith(before)
    assert len(file.read_text().splitlines()) == 4 + 1
    assert load_settings(tmp_path / "out" / "settings.json").config.budget == 600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budgets", "150;200"), ["--budgets", "'150;200'"]),
        (("--budgets", "1"), ["budget", "at least 2"]),
        (("--windows", "1.5"), ["windows", "1.5"]),
        (("--ratios", "0"), ["retention_ratio", "0"]),
        (("--tolerance", "0"), ["--tolerance", "above 0"]),
        (("--thinking-tolerance", "nan"), ["--thinking-tolerance", "above 0", "nan"]),
        (("--method", "full"), ["full", "no settings"]),
        (("--method", "best"), ["'best'"]),
        (("--budgets", "60"), ["budget 60 is too small for a question of"]),
        (("--max-tokens", "20"), ["no trace is fit", "too_long 3", "unfinished 1"]),
    ],
)
def test_refusals_before_a_model_is_loaded(
    arguments: tuple[str, ...], words: list[str], tune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "load_model", None)
    code, _, err = tune(*arguments)
    assert code == 2
    for word in words:
        assert word in err


def test_a_folder_is_not_claimed_by_mistakes(tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "load_model", lambda *_, **__: (tiny_model("llama"), None))
        code, _, err = tune(*GRID)
    assert code == 2
    assert "the predictor reads hidden states of size" in err
    assert not [entry for entry in (tmp_path / "out").iterdir() if not entry.name.startswith(".")]


def test_a_predictor_is_needed(
    traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ("tune", "--model", WEIGHTS, "--traces", traces, "--out", tmp_path / "out")
    code, _, err = run(monkeypatch, capsys, *fixed)
    assert code == 2
    assert "needs --predictor" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(monkeypatch, capsys, *fixed, *NATIVE, *GRID, "--device", "cpu", *LAX)
    assert code == 0, err
    found = load_settings(tmp_path / "out" / "settings.json")
    assert (found.method, found.granularity) == ("snapkv", "native")
    code, _, err = run(monkeypatch, capsys, *fixed, *NATIVE, "--method", "rkv", *GRID)
    assert code == 2
    assert 'made with other settings (method.mix: null there, 0.1 now; method.name: "SnapKV" there' in err


def test_a_damaged_line_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = row("b", 20, 0.3, 0.04)
    lines = [{"trace": "a", "budget": 3}, {**asdict(whole), "retention_ratio": 7}, asdict(whole)]
    (tmp_path / "replays.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert list(MeasuredReplays(tmp_path).found.values()) == [whole]
    assert "replays.jsonl, line 1 is damaged" in caplog.messages[0]
    assert "replays.jsonl, line 2 is damaged and left out (retention_ratio" in caplog.messages[1]


def test_grid() -> None:
    grid = settings_grid([200, 100], [0.2, 0.5], [0.3])
    assert grid == [
        CompressionConfig(100, 20, 0.3),
        CompressionConfig(100, 50, 0.3),
        CompressionConfig(200, 40, 0.3),
        CompressionConfig(200, 100, 0.3),
    ]
    assert settings_grid([10], [0.2, 0.21], [0.5]) == [CompressionConfig(10, 2, 0.5)]  # the same after rounding


def row(trace: str, budget: int, kl: float, thinking_loss: float, compactions: int = 1) -> MeasuredReplay:
    return MeasuredReplay(
        trace, budget, 5, 0.4, 100, 50, 10, kl, -1.0, kl, thinking_loss, 30, budget, 20.0, compactions
    )


def test_frontier_averages_the_traces_asked_for() -> None:
    rows = [row("a", 20, 0.1, 0.02), row("b", 20, 0.3, 0.04), row("c", 20, 9.0, 9.0)]
    rows += [row("a", 40, 0.0, 0.0, 0), row("b", 40, 0.2, -0.1)]
    small, large = frontier(rows, [CompressionConfig(20, 5, 0.4), CompressionConfig(40, 5, 0.4)], ["a", "b"])
    assert (small.kl, small.traces, small.compacted) == (pytest.approx(0.2), 2, 2)
    assert small.kl_error == pytest.approx(0.1)  # deviation of 0.1414 over the root of 2
    assert small.thinking_loss == pytest.approx(0.03)
    assert small.thinking_error == pytest.approx(0.01)
    # 10 answer and 50 thinking tokens: 2 and 5 nats
    assert small.total_variation == pytest.approx(1 - (math.exp(-2) + math.exp(-5)) / 2)
    assert (large.kl, large.compacted) == (pytest.approx(0.1), 1)
    assert large.total_variation == 0  # likelier than before is no loss


def test_total_variation_is_that_of_two_distributions() -> None:
    """Estimated from samples, against the half of the sum of absolute differences."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 30, generator=generator).softmax(-1)
    drawn = p.multinomial(200_000, replacement=True, generator=generator)
    exact = float((p - q).abs().sum()) / 2
    assert total_variation((p.log() - q.log())[drawn].tolist()) == pytest.approx(exact, abs=0.003)


def point(budget: int, window: int, kl: float, thinking_loss: float) -> FrontierPoint:
    return FrontierPoint(CompressionConfig(budget, window, 0.4), kl, 0.0, thinking_loss, 0.0, 0.5, 10.0, 3, 3)


def test_the_rule() -> None:
    points = [
        point(20, 5, 0.3, 0.01),
        point(30, 5, 0.04, 0.03),
        point(30, 9, 0.09, 0.02),
        point(40, 5, 0.0, 0.2),
        point(50, 5, 0.01, 0.0),
    ]
    assert choose(points, 0.1, 0.1) is points[2]  # the smallest budget within both, there the least thinking loss
    assert choose(points, 0.04, 0.1) is points[1]
    assert choose(points, 0.04, 0.3) is points[1]
    assert choose(points, 0.03, 0.3) is points[3]
    assert choose(points, 0.03, 0.1) is points[4]  # its answer is as it was, but not its thinking
    assert choose(points, 0.5, 0.5) is points[0]
    assert choose(points[:4], 0.01, 0.1) is None
