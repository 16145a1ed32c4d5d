"""The commands collect, import, status and label on folders, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from adder import rows_of
from command_line import run
from dynts.cli.command import add_command
from dynts.engines.ray import Cluster
from dynts.extras import pip_install
from dynts.options import option, part
from dynts.tiny import WEIGHTS
from dynts.tiny.task import PREDICTOR, make_problem

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--model", WEIGHTS, "--device", "cpu")


@pytest.fixture
def dynts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def problems(write_lines: Callable[..., Path]) -> Path:
    chosen = [make_problem(seed, steps=range(4, 5)) for seed in PREDICTOR[:6]]
    rows = [{"task": item.question, "gold": item.answer, "steps": 4} for item in chosen]
    return write_lines([*rows, {"task": "Why?", "gold": float("nan"), "steps": 4}], "problems.jsonl")


@pytest.mark.quick
def test_from_problems_to_labels(dynts: Run, problems: Path, tmp_path: Path) -> None:
    collect = ("collect", *MODEL, "--dataset", problems, "--out", tmp_path / "traces", "--max-new-tokens", 330)
    collect = (*collect, "--question-column", "task", "--answer-column", "gold", "--keep-column", "steps")
    code, out, err = dynts(*collect, "--limit", 2)
    assert (code, out) == (0, f"2 traces in {tmp_path / 'traces'}, 2 correct; unfit: none\n"), err
    assert f"{problems}: 1 problems without a gold answer are left out" in err
    code, out, _ = dynts(*collect, "--samples", 2, "--batch", 12)
    assert code == 0
    assert out.startswith(f"12 traces in {tmp_path / 'traces'}, ")
    code, out, _ = dynts("status", tmp_path / "traces", "--json")
    assert (json.loads(out)["done"], json.loads(out)["total"]) == (12, 12)
    code, out, _ = dynts("label", *MODEL, "--traces", tmp_path / "traces", "--out", tmp_path / "shards")
    assert code == 0
    assert out.startswith("6 of 12 traces labelled")
    code, out, _ = dynts("status", tmp_path / "shards")
    assert "(label): 6 of 6 traces; dropped: duplicate_question" in out
    assert out.endswith("  complete\n")
    code, _, err = dynts(*collect, "--temperature", 1)
    assert code == 2
    assert "sampling.temperature: 0.6 there, 1.0 now" in err


def test_import(dynts: Run, write_lines: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "output": "<thought> 2 </thought> \\boxed{2}", "gold": 2}]
    arguments = ("import", write_lines(rows), "--out", tmp_path / "out", "--question-column", "prompt")
    arguments = (*arguments, "--response-column", "output", "--answer-column", "gold")
    code, out, err = dynts(*arguments, "--think-start", "<thought>", "--think-end", "</thought>")
    assert (code, out) == (0, f"1 traces in {tmp_path / 'out'}, 1 correct; unfit: none\n"), err
    [row] = rows_of(tmp_path / "out").values()
    assert row[3] == " 2 </think> \\boxed{2}"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--method", "dynts"), "method 'dynts' needs --predictor"),
        (("--method", "best"), "'best'"),
        (("--samples", 2, "--temperature", 0), "2 samples"),
        (("--samples", 0), "samples"),
        (("--limit", 0), "limit"),
        (("--batch", 0), "batch"),
        (("--budget", 1), "budget"),
        (("--engine-args", "{"), "--engine-args: not valid JSON"),
        (
            ("--engine-args", "{}", "--engine", "vllm", "--method", "window"),
            "--engine vllm takes the methods full, dynts and dynts-all",
        ),
        (("--engine-args", '{"seed": 1}'), "--engine-args"),
        (("--question-column", "question"), "no column 'question', only task, gold, steps"),
        (("--dataset", "absent.jsonl"), "absent.jsonl"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    dynts: Run, problems: Path, tmp_path: Path, options: tuple[object, ...], problem: str
) -> None:
    columns = ("--question-column", "task", "--answer-column", "gold")
    code, _, err = dynts("collect", *MODEL, "--dataset", problems, "--out", tmp_path / "out", *columns, *options)
    assert code == 2
    assert problem in err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_leaves_an_empty_folder(dynts: Run, problems: Path, tmp_path: Path) -> None:
    columns = ("--question-column", "task", "--answer-column", "gold")
    code, _, err = dynts("collect", "--model", "./absent", "--dataset", problems, "--out", tmp_path / "out", *columns)
    assert code == 2
    assert "model folder ./absent does not exist" in err
    code, out, _ = dynts("status", tmp_path / "out")
    assert "0 of 6 traces" in out


@dataclass
class OnRay:
    cluster: Cluster | None = part()
    other: int = option(0, help="Another option.")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), None),
        (("--ray",), "local"),
        (("--ray", "--other", "1"), "local"),
        (("--ray", "auto"), "auto"),
        (("--ray=ray://head:10001",), "ray://head:10001"),
        (("--other", "1", "--ray"), "local"),
    ],
)
def test_the_address_of_a_cluster_may_be_left_out(
    given: tuple[str, ...], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    app = typer.Typer()
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: object())

    def command(given: OnRay) -> None:
        seen.append(given.cluster and given.cluster.address)

    add_command(app, command, "command")
    app(list(given), standalone_mode=False)
    assert seen == [expected]


def test_a_missing_package_is_named(
    dynts: Run, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None)
    arguments = ("collect", *MODEL, "--dataset", problems, "--out", tmp_path / "out")
    code, _, err = dynts(*arguments)
    assert code == 2
    assert f"dynts collect needs pyarrow: {pip_install('collect')}" in err
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None if name == "ray" else object())
    code, _, err = dynts(*arguments, "--question-column", "task", "--answer-column", "gold", "--ray")
    assert code == 2
    assert f"--ray needs ray: {pip_install('ray')}" in err


@pytest.mark.slow
def test_torchrun_shares_the_work(problems: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dynts"]
    columns = ["--question-column", "task", "--answer-column", "gold"]
    commands = {
        "traces": ["collect", "--dataset", problems, "--max-new-tokens", 330, *columns],
        "shards": ["label", "--traces", tmp_path / "traces"],
    }
    for out, command in commands.items():
        arguments = [*launch, *command, *MODEL, "--out", tmp_path / out]
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "traces")) == 6
    assert {path.name[:12] for path in (tmp_path / "traces").glob("traces-*")} == {"traces-00000", "traces-00001"}
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 6
