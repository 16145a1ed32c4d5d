"""Starting the servers of vLLM and SGLang, with stand-ins for their packages that write down what they are given."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest
from transformers import PreTrainedTokenizerFast

from command_line import run
from dynts.extras import pip_install
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.tiny import WEIGHTS

PREDICTOR = str(WEIGHTS / "answer")
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
wanted = {name: value for name, value in os.environ.items() if name.startswith(("DYNTS_", "VLLM_", "SGLANG_"))}
out = Path(os.environ["STAND_IN_OUT"])
shown = Path("/proc/self/cmdline").read_text().split("\\0")
told = {"arguments": sys.argv[1:], "shown": shown, "environment": wanted}
out.with_suffix(".part").write_text(json.dumps(told))
out.with_suffix(".part").rename(out)
def end(*_):
    print("drained")
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
if "--stay" in sys.argv:
    time.sleep(60)
"""
SGLANG_APP = """
class app:
    def add_middleware(kind):
        print("answers go through", kind.__module__, kind.__name__)
"""
MODULES = {
    "vllm/__init__.py": "import sys\nassert 'dynts.cli' not in sys.modules, 'imported by dynts'\n",
    "vllm/entrypoints/openai/api_server.py": STAND_IN,
    "sglang/__init__.py": "import sys\nassert 'dynts.cli' not in sys.modules, 'imported by dynts'\n",
    "sglang/cli/main.py": "def main():\n" + STAND_IN.replace("\n", "\n    "),
    "sglang/srt/entrypoints/http_server.py": SGLANG_APP,
}
BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"])
SETTINGS = {
    "DYNTS_PREDICTOR": PREDICTOR,
    "DYNTS_BUDGET": "3000",
    "DYNTS_LOCAL_WINDOW": "1500",
    "DYNTS_RETENTION_RATIO": "0.3",
    "DYNTS_GRANULARITY": "shared",
    "DYNTS_METHOD": "dynts",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes stand-ins importable, of this process too: a folder that has them."""

    def make(*names: str) -> Path:
        folder = tmp_path / "-".join(names)
        for place, text in MODULES.items():
            if place.split("/")[0] in names:
                module = folder / place
                module.parent.mkdir(parents=True, exist_ok=True)
                module.write_text(text)
        monkeypatch.syspath_prepend(folder)
        return folder

    return make


def environment(folder: Path, out: Path) -> dict[str, str]:
    """Of a process with stand-ins."""
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    ours = ("DYNTS_", "VLLM_", "SGLANG_")
    given = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**given, "PYTHONPATH": paths, "STAND_IN_OUT": str(out)}


Started = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The words and variables of servers that this process would have become."""
    found: Started = []

    def become(path: str, words: list[str], given: dict[str, str]) -> NoReturn:
        found.append((words, given))
        raise SystemExit(0)

    monkeypatch.setattr("dynts.engines.server.os.execve", become)
    return found


GIVEN = {
    "vllm": (
        ["--reasoning-parser=dynts", "--middleware=dynts.engines.replies.Replies", f"--model={WEIGHTS}"],
        ["--middleware=dynts.engines.vllm.watch.EngineWatch"],
        {"VLLM_API_KEY": "sesame"},
    ),
    "sglang": (
        ["serve", "--model-type=llm", "--reasoning-parser=dynts", f"--model-path={WEIGHTS}", "--enable-metrics"],
        ["--api-key=sesame"],
        {"SGLANG_PLUGINS": "other,dynts"},
    ),
}
"""What each is told beside what is told both: words at the start and elsewhere, and variables."""


@BOTH
def test_what_a_server_is_given_and_its_signals_and_exit_code(
    engine: str, packages: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "given.json"
    variables = environment(packages(engine), out)
    if engine == "sglang":
        variables |= {"SGLANG_PLUGINS": "other"}
    own = {name.lower().replace("dynts_", "--").replace("_", "-"): value for name, value in SETTINGS.items()}
    words = ["serve", str(WEIGHTS), "--engine", engine, *(word for option in own.items() for word in option)]
    words += ["--port", "9000", "--api-key", "sesame", "--dtype", "float32", "--", "--other-option", "4096", "--stay"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynts", *words], env=variables, stdout=subprocess.PIPE, text=True
    )
    while not out.exists():
        assert process.poll() is None
        time.sleep(0.05)
    given = json.loads(out.read_text())
    first, more, told = GIVEN[engine]
    both = ["--dtype=float32", "--host=127.0.0.1", "--port=9000", "--other-option", "4096", "--stay"]
    assert sorted(given["arguments"]) == sorted([*first, *more, *both])
    last = [word for word in given["arguments"] if word in both[-3:]]
    assert last == both[-3:]
    assert given["environment"] == {**SETTINGS, **told}
    assert not [word for word in given["shown"] if "sesame" in word]
    time.sleep(0.2)  # its handler comes a moment after the file
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "drained" in printed
    assert engine == "vllm" or "answers go through dynts.engines.replies Replies" in printed


@BOTH
def test_an_engine_of_another_environment_is_not_taken(
    engine: str,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if find_spec(engine) is not None:
        pytest.skip(f"{engine} is installed in this environment")
    other = tmp_path / "bin" / engine
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(other.parent), os.environ["PATH"]]))
    code, _, err = run(monkeypatch, capsys, "serve", "some/model", "--predictor", PREDICTOR, "--engine", engine)
    assert (code, started) == (2, [])
    assert pip_install(engine) in err


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [(("vllm",), "vllm"), (("sglang",), "sglang"), (("vllm", "sglang"), "vllm")],
    ids=["vLLM alone", "SGLang alone", "both"],
)
def test_an_engine_is_chosen_by_what_is_installed_and_a_predictor_that_does_not_do_is_refused(
    installed: tuple[str, ...],
    chosen: str,
    packages: Callable[..., Path],
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if {"vllm", "sglang"} - {*installed} & {name for name in ("vllm", "sglang") if find_spec(name)}:
        pytest.skip("the other one is installed in this environment")
    packages(*installed)
    for engine in (chosen, "auto"):
        command = ("serve", WEIGHTS, "--engine", engine)
        code, _, err = run(monkeypatch, capsys, *command, "--predictor", "./absent")
        assert code == 2
        assert "predictor './absent' is neither a folder nor" in err
        code, _, err = run(monkeypatch, capsys, *command, "--predictor", PREDICTOR, "--granularity", "native")
        assert code == 2
        assert "this predictor has one score for all layers and heads" in err
        assert not started
        assert run(monkeypatch, capsys, *command, "--predictor", PREDICTOR)[0] == 0
        assert started.pop()[0][1:3] == ["-m", f"dynts.engines.{chosen}.openai"]


def test_a_prompt_that_competes_is_not_taken_from_the_prefix_cache(
    packages: Callable[..., Path],
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    packages("vllm")
    ImportancePredictor(PredictorConfig(16, layers=2, kv_heads=2, all_tokens=True)).save_pretrained(tmp_path / "p")
    command = ("serve", "m", "--engine", "vllm", "--method", "dynts-all", "--granularity", "native")
    assert run(monkeypatch, capsys, *command, "--predictor", tmp_path / "p")[0] == 0
    [(words, given)] = started
    assert "--no-enable-prefix-caching" in words
    assert (given["DYNTS_METHOD"], given["DYNTS_GRANULARITY"]) == ("dynts-all", "native")
    code, _, err = run(monkeypatch, capsys, *command[:-2], "--predictor", PREDICTOR)
    assert (code, "was trained on thinking tokens only" in err) == (2, True)


@BOTH
def test_what_does_not_fit_an_engine_is_refused(
    engine: str, started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: object) -> str:
        code, _, err = run(monkeypatch, capsys, "serve", "m", "--engine", engine, *options)
        assert (code, started) == (2, [])
        return err

    with_predictor = ("--predictor", "p")
    assert "--max-batch is for --engine transformers" in refusal(*with_predictor, "--max-batch", 4)
    assert "--open-thinking is for --engine transformers" in refusal(*with_predictor, "--open-thinking")
    assert f"--engine {engine} has of the methods dynts" in refusal("--method", "full")
    assert "needs --predictor" in refusal()


def test_what_sglang_cannot_do_is_refused_before_it_starts(
    packages: Callable[..., Path],
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    packages("sglang")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(WEIGHTS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<think>", "[THINK]")
    tokenizer.save_pretrained(tmp_path / "model")

    def answer(*options: object) -> tuple[int, str]:
        code, _, err = run(monkeypatch, capsys, "serve", "--engine", "sglang", *options)
        return code, err

    code, err = answer(WEIGHTS, "--method", "dynts-all", "--predictor", PREDICTOR)
    assert (code, started) == (2, [])
    assert "--engine sglang has of the methods dynts only" in err
    special = (tmp_path / "model", "--predictor", PREDICTOR)
    code, err = answer(*special)
    assert (code, started) == (2, [])
    assert "SGLang leaves [THINK] out of texts" in err
    assert answer(*special, "--", "--reasoning-parser", "mistral")[0] == 0
    assert started.pop()[0][-2:] == ["--reasoning-parser", "mistral"]


def test_sglang_is_told_a_free_port(
    packages: Callable[..., Path],
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages("sglang")
    command = ("serve", WEIGHTS, "--engine", "sglang", "--predictor", PREDICTOR, "--port", 0)
    assert run(monkeypatch, capsys, *command)[0] == 0
    [(words, _)] = started
    [port] = [int(word.removeprefix("--port=")) for word in words if word.startswith("--port=")]
    assert port > 0, "SGLang would look for itself at port 0"
