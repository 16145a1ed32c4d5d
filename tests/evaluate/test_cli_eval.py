"""`dynts eval`, as a user types it, with the embedded model."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import run
from dynts.chat.markers import END
from dynts.errors import DyntsError
from dynts.evaluate.results import ArmResults, read_arm, read_results
from dynts.grading.boxed import last_boxed
from dynts.grading.grader import Grader, Verdict
from dynts.predictor import ImportancePredictor, PredictorConfig
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import is_solved
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder

pytest.importorskip("pyarrow", reason="results need pyarrow: pip install 'dynts-kv[collect]'")

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--model", WEIGHTS, "--device", "cpu")
SCHEDULE = ("--local-window", 50, "--retention-ratio", 0.66)
GREEDY = ("--temperature", 0, "--samples", 1)
PREDICTORS = ("--predictor", WEIGHTS / "answer")
PROBLEMS = [make_problem(seed, steps=range(4, 5)) for seed in HELD_OUT[:6]]


@pytest.fixture
def dynts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def problems(write_lines: Callable[..., Path]) -> Path:
    rows = [{"id": f"p{n}", "question": item.question, "answer": item.answer} for n, item in enumerate(PROBLEMS)]
    return write_lines(rows, "chains.jsonl")


def by_name(folder: Path) -> dict[tuple[str, int | None], ArmResults]:
    return {(arm.method, arm.config and arm.config.budget): arm for arm in read_results(folder)}


def test_methods_and_budgets(dynts: Run, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    import dynts.engines.transformers as module

    load_model = module.load_model
    monkeypatch.setattr(module, "load_model", lambda *args, **kwargs: loads.append(args) or load_model(*args, **kwargs))
    out = tmp_path / "results"
    command = ("eval", *MODEL, "--benchmark", problems, "--out", out, *SCHEDULE, *GREEDY, "--max-new-tokens", 330)
    code, shown, err = dynts(
        *command, *PREDICTORS, "--method", "full,dynts", "--budget", "170,900", "--batch", 2, "--limit", 2
    )
    assert code == 0, err
    assert len(loads) == 1, "the model is loaded once for all arms"
    assert [line.split()[0] for line in err.splitlines() if line.startswith("arm ")] == ["arm"] * 3
    arms = by_name(out)
    assert set(arms) == {("full", None), ("dynts, answer label", 170), ("dynts, answer label", 900)}
    for (method, budget), arm in arms.items():
        assert arm.benchmark == "chains"
        assert len(arm.samples) == 2
        assert set(Counter(sample.batch for sample in arm.samples).values()) == {2}
        rows = {row.id: row for row in TraceFolder.open(arm.folder).rows()}
        for sample in arm.samples:
            row = rows[f"{sample.problem_id}#0"]
            assert sample.correct == is_solved(row.response, row.answer)
            assert sample.answer == last_boxed(row.response.rpartition(END)[2] if END in row.response else "")
            assert sample.seconds > 0
            end = sample.prompt_tokens + sample.generated_tokens - 1
            assert sample.peak_tokens == (end if budget is None else min(end, budget))
            assert sample.compactions == len(sample.cache_lengths)
            assert (sample.compactions == 0) == (end < (budget or 10**9))
        assert f"chains: {method.split()[0]}" in shown
    full = arms["full", None]
    assert responses(arms["dynts, answer label", 900]) == responses(full), (
        "a budget that is never reached changes nothing"
    )
    assert sum(sample.correct for sample in full.samples) == 2
    assert max(sample.peak_bytes for sample in full.samples) > max(
        sample.peak_bytes for sample in arms["dynts, answer label", 170].samples
    )

    code, shown, _ = dynts("status", full.folder)
    assert "(eval): 2 of 2 traces" in shown
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    code, _, err = dynts(
        *command, "--method", "full,rkv", "--granularity", "shared,native", "--budget", 170, "--limit", 1
    )
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is there is not made again"
    assert set(by_name(out)) - set(arms) == {("rkv", 170), ("rkv, native", 170)}
    code, _, err = dynts(*command, "--method", "h2o,window", "--protect-question", "--budget", 170, "--limit", 1)
    assert code == 0, err
    assert len(by_name(out)["h2o, question kept", 170].samples) == 1
    assert ("window", 170) in by_name(out), "a window with the question is another method"

    code, _, err = dynts(*command, "--method", "full", "--seed", 1)
    assert code == 2
    assert "sampling.seed: 0 there, 1 now" in err


@pytest.mark.quick
def test_two_predictors_have_folders_of_their_own(dynts: Run, problems: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in (WEIGHTS / "answer").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"transform": "rank"}))
    out = tmp_path / "results"
    command = ("eval", *MODEL, "--benchmark", problems, "--out", out, *SCHEDULE, *GREEDY, "--max-new-tokens", 120)
    command = (*command, "--method", "dynts", "--budget", 170, "--limit", 1)
    code, _, err = dynts(*command, *PREDICTORS, "--predictor", other)
    assert code == 0, err
    assert {arm.method for arm in read_results(out)} == {
        f"dynts, answer label ({WEIGHTS / 'answer'})",
        f"dynts, answer label ({other})",
    }
    code, _, _ = dynts(*command, "--predictor", WEIGHTS / "future")
    assert "dynts, future label" in {arm.method for arm in read_results(out)}


def test_a_predictor_of_every_head_has_an_arm_of_each_granularity(dynts: Run, problems: Path, tmp_path: Path) -> None:
    shape = PredictorConfig(hidden_size=128, layers=4, kv_heads=2, label="answer-native")
    ImportancePredictor(shape).save_pretrained(tmp_path / "predictor")
    out = tmp_path / "results"
    command = ("eval", *MODEL, "--benchmark", problems, "--out", out, *SCHEDULE, *GREEDY, "--max-new-tokens", 120)
    command = (*command, "--method", "dynts", "--granularity", "shared,native", "--budget", 130, "--limit", 1)
    code, _, err = dynts(*command, "--predictor", tmp_path / "predictor", "--predictor", WEIGHTS / "answer")
    assert code == 0, err
    found = {arm.method: arm for arm in read_results(out)}
    assert {name: arm.manifest["settings"]["method"]["granularity"] for name, arm in found.items()} == {
        "dynts, answer-native label": "shared",
        "dynts, answer-native label, native": "native",
        "dynts, answer label": "shared",
    }
    assert all(sample.compactions for arm in found.values() for sample in arm.samples)


def test_a_model_that_does_not_think_is_graded_on_all_that_it_wrote(
    dynts: Run, write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    """The thinking of a question that is cut off holds no box, so the two gradings differ in the reason only."""
    path = write_lines([{"question": PROBLEMS[0].question, "answer": PROBLEMS[0].answer}], "chains.jsonl")
    command = ("eval", *MODEL, "--benchmark", path, *GREEDY, "--max-new-tokens", 20, "--method", "full")
    for option, reason in (("--thinking", "unfinished"), ("--no-thinking", "ungradable")):
        out = tmp_path / option
        code, _, err = dynts(*command, "--out", out, option)
        assert code == 0, err
        [arm] = read_results(out)
        assert [row.reason for row in TraceFolder.open(arm.folder).rows()] == [reason]
    code, _, err = dynts(*command, "--out", tmp_path / "--thinking", "--no-thinking")
    assert code == 2
    assert "thinking: true there, false now" in err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--method", "dynts"), "--predictor"),
        (("--method", "best"), "unknown method 'best'"),
        (("--benchmark", "math50"), "unknown benchmark 'math50': choose from aime24, aime25"),
        (("--budget", 90), "benchmark chains, question p"),
        (("--budget", "17x"), "--budget takes whole numbers such as 3000,5000, got 17x"),
        (("--budget", 40), "local_window (50) must be smaller than the budget (40)"),
        (("--samples", 2), "2 samples at temperature 0 would be equal"),
        (("--granularity", "both"), "granularity must be shared, native or shared,native, got 'both'"),
        (("--paper-settings", "r1-qwen-7b"), "--paper-settings sets budget, local window and retention ratio"),
        (("--batch", 0), "batch must be at least 1"),
        (("--engine", "vllm"), "--engine vllm takes the methods full, dynts and dynts-all, got Window"),
        (("--engine", "vllm", "--engine-args", "[1]"), "--engine-args: expected a JSON object, got list"),
        (("--engine", "vllm", "--attention", "eager"), "--engine vllm takes no --gguf-file and no --attention"),
        (("--engine-args", '{"seed": 1}'), "--engine-args are for --engine vllm"),
        (("--predictor", "./absent"), "predictor './absent'"),
        (("--model", "./absent"), "./absent"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    dynts: Run, problems: Path, tmp_path: Path, options: tuple[object, ...], problem: str
) -> None:
    command = ("eval", *MODEL, "--benchmark", problems, "--out", tmp_path / "out", "--method", "window", *SCHEDULE)
    code, _, err = dynts(*command, *GREEDY, *options)
    assert code == 2
    assert problem in err
    assert not (tmp_path / "out").exists()


def test_other_bad_input(dynts: Run, problems: Path, tmp_path: Path) -> None:
    command = ("eval", *MODEL, "--method", "full", *GREEDY)
    code, _, err = dynts(*command, "--benchmark", problems, "--out", problems)
    assert (code, "is a file: give a folder for the results" in err) == (2, True)
    twin = tmp_path / "twin"
    twin.mkdir()
    (twin / "chains.jsonl").write_text(problems.read_text())
    code, _, err = dynts(*command, "--benchmark", f"{problems},{twin / 'chains.jsonl'}", "--out", tmp_path / "out")
    assert (code, "two benchmarks have the name 'chains'" in err) == (2, True)
    with pytest.raises(DyntsError, match="holds no results: give a folder written by `dynts eval`"):
        read_results(tmp_path)


def test_a_folder_of_collected_traces_is_no_arm(dynts: Run, problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "traces"
    code, _, err = dynts("collect", *MODEL, "--dataset", problems, "--out", out, "--limit", 1, "--max-new-tokens", 9)
    assert code == 0, err
    with pytest.raises(DyntsError, match="is no arm of an evaluation"):
        read_arm(out)
    with pytest.raises(DyntsError, match="holds no results"):
        read_results(out)


def test_answers_of_the_embedded_model_are_graded_as_in_training() -> None:
    """Its tuples, in a process of their own and in this one."""
    gold = "( 7 , 4 , 8 , 5 )"
    with Grader() as grader:
        for given in (
            gold,
            "(7,4,8,5)",
            "( 4 , 7 , 8 , 5 )",
            "( 7 , 4 , 8 )",
            "7",
            "( 7 , 4 , 8 , 15 )",
            "( 0 , 0 , 0 , 0 )",
        ):
            answer = f"so {END} a \\boxed{{ {given} }} ."
            right = grader.grade(answer.partition(END)[2], gold) is Verdict.CORRECT
            assert right == is_solved(answer, gold) == (given in (gold, "(7,4,8,5)")), given


@pytest.mark.slow
def test_torchrun_shares_the_work(problems: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dynts"]
    command = [*launch, "eval", *MODEL, "--benchmark", problems, "--method", "full,dynts", *PREDICTORS, *GREEDY]
    command += ["--budget", 170, *SCHEDULE, "--max-new-tokens", 330]
    for nproc in ("2", "1"):
        command[command.index("--nproc-per-node") + 1] = nproc
        arguments = [*command, "--out", tmp_path / nproc]
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert "Pass@1" in done.stdout
    shared, alone = (by_name(tmp_path / nproc) for nproc in ("2", "1"))
    assert set(shared) == set(alone)
    for name, arm in shared.items():
        assert {path.name[:12] for path in arm.folder.glob("traces-*")} == {"traces-00000", "traces-00001"}
        assert responses(arm) == responses(alone[name])


def responses(arm: ArmResults) -> dict[str, str]:
    """By id; an id that occurs twice is an error."""
    rows = list(TraceFolder.open(arm.folder).rows())
    found = {row.id: row.response for row in rows}
    assert len(found) == len(rows)
    return found
