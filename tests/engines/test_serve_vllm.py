"""Starting vLLM's server, with a stand-in for the package vllm that writes down what it is given."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from command_line import run
from dynts.extras import pip_install
from dynts.predictor.config import PredictorConfig
from dynts.predictor.model import ImportancePredictor
from dynts.tiny import WEIGHTS

PREDICTOR = str(WEIGHTS / "answer")
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
wanted = {name: value for name, value in os.environ.items() if name.startswith(("DYNTS_", "VLLM_"))}
out = Path(os.environ["STAND_IN_OUT"])
out.with_suffix(".part").write_text(json.dumps({"arguments": sys.argv[1:], "environment": wanted}))
out.with_suffix(".part").rename(out)
def end(*_):
    print("drained")
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
if "--stay" in sys.argv:
    time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    package = tmp_path / "packages" / "vllm"
    module = package / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(STAND_IN)
    (package / "__init__.py").write_text("import sys\nassert 'dynts.cli' not in sys.modules, 'imported by dynts'\n")
    paths = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    given = {name: value for name, value in os.environ.items() if not name.startswith(("DYNTS_", "VLLM_"))}
    return {**given, "PYTHONPATH": paths, "STAND_IN_OUT": str(tmp_path / "given.json")}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "dynts", "serve", "some/model", "--predictor", PREDICTOR, *options]


def test_what_vllm_is_given_and_its_signals_and_exit_code(environment: dict[str, str], tmp_path: Path) -> None:
    options = ["--budget", "3000", "--local-window", "1500", "--retention-ratio", "0.3"]
    options += [
        "--port",
        "9000",
        "--api-key",
        "sesame",
        "--dtype",
        "float32",
        "--",
        "--max-model-len",
        "4096",
        "--stay",
    ]
    words = [sys.executable, "-m", "dynts", "serve", "some/model", "--predictor", PREDICTOR, *options]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "given.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    given = json.loads((tmp_path / "given.json").read_text())
    assert given["arguments"] == [
        "--model",
        "some/model",
        "--reasoning-parser=dynts",
        "--middleware=dynts.engines.replies.Replies",
        "--host=127.0.0.1",
        "--port=9000",
        "--dtype=float32",
        "--max-model-len",
        "4096",
        "--stay",
        "--middleware=dynts.engines.vllm.watch.EngineWatch",
    ]
    assert given["environment"] == {
        "DYNTS_PREDICTOR": PREDICTOR,
        "DYNTS_BUDGET": "3000",
        "DYNTS_LOCAL_WINDOW": "1500",
        "DYNTS_RETENTION_RATIO": "0.3",
        "DYNTS_GRANULARITY": "shared",
        "DYNTS_METHOD": "dynts",
        "VLLM_API_KEY": "sesame",
    }
    time.sleep(0.2)  # its handler comes a moment after the file
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "drained" in out


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed in this environment")
def test_a_vllm_of_another_environment_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("dynts.engines.vllm.server.os.execve", lambda *_: pytest.fail("vLLM was started"))
    other = tmp_path / "bin" / "vllm"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(other.parent), os.environ["PATH"]]))
    code, _, err = run(monkeypatch, capsys, "serve", "some/model", "--predictor", PREDICTOR, "--engine", "vllm")
    assert code == 2
    assert pip_install("vllm") in err


def test_an_engine_is_chosen_by_what_is_installed_and_a_predictor_that_does_not_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str]
) -> None:
    started: list[list[str]] = []

    def exec_vllm(path: str, words: list[str], given: dict[str, str]) -> NoReturn:
        started.append(words)
        raise SystemExit(0)

    monkeypatch.setattr("dynts.engines.vllm.server.os.execve", exec_vllm)
    monkeypatch.syspath_prepend(environment["PYTHONPATH"].split(os.pathsep)[0])
    for engine in ("vllm", "auto"):
        command = ("serve", "some/model", "--engine", engine)
        code, _, err = run(monkeypatch, capsys, *command, "--predictor", "./absent")
        assert code == 2
        assert "predictor './absent' is neither a folder nor" in err
        code, _, err = run(monkeypatch, capsys, *command, "--predictor", PREDICTOR, "--granularity", "native")
        assert code == 2
        assert "this predictor has one score for all layers and heads" in err
        assert not started
        assert run(monkeypatch, capsys, *command, "--predictor", PREDICTOR)[0] == 0
        assert started.pop()[1:5] == ["-m", "dynts.engines.vllm.openai", "--model", "some/model"]


def test_a_prompt_that_competes_is_not_taken_from_the_prefix_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], tmp_path: Path
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def exec_vllm(path: str, words: list[str], given: dict[str, str]) -> NoReturn:
        started.append((words, given))
        raise SystemExit(0)

    monkeypatch.setattr("dynts.engines.vllm.server.os.execve", exec_vllm)
    monkeypatch.syspath_prepend(environment["PYTHONPATH"].split(os.pathsep)[0])
    ImportancePredictor(PredictorConfig(16, layers=2, kv_heads=2, all_tokens=True)).save_pretrained(tmp_path / "p")
    command = ("serve", "m", "--engine", "vllm", "--method", "dynts-all", "--granularity", "native")
    assert run(monkeypatch, capsys, *command, "--predictor", tmp_path / "p")[0] == 0
    [(words, given)] = started
    assert "--no-enable-prefix-caching" in words
    assert (given["DYNTS_METHOD"], given["DYNTS_GRANULARITY"]) == ("dynts-all", "native")
    code, _, err = run(monkeypatch, capsys, *command[:-2], "--predictor", PREDICTOR)
    assert (code, "was trained on thinking tokens only" in err) == (2, True)


def test_what_does_not_fit_vllm_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dynts.engines.vllm.server.os.execve", lambda *_: pytest.fail("vLLM was started"))

    def refusal(*options: object) -> str:
        code, _, err = run(monkeypatch, capsys, "serve", "m", "--engine", "vllm", *options)
        assert code == 2
        return err

    with_predictor = ("--predictor", "p")
    assert "--max-batch is for --engine transformers" in refusal(*with_predictor, "--max-batch", 4)
    assert "--open-thinking is for --engine transformers" in refusal(*with_predictor, "--open-thinking")
    assert "methods dynts and dynts-all only, got 'full'" in refusal("--method", "full")
    assert "needs --predictor" in refusal()
