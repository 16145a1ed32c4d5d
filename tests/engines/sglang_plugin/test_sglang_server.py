"""`dynts serve --engine sglang`, a real server, beside that of `--engine transformers`."""

import signal
from pathlib import Path

import psutil
import pytest
from sglang_engines import ENVIRONMENT, SERVER, needs_sglang

from engine_server import KEY, EngineServer, check_equal_to_transformers, running

pytestmark = [needs_sglang, pytest.mark.slow, pytest.mark.timeout(600)]


def test_it_speaks_as_the_other_engine_does(tmp_path: Path) -> None:
    settings = {**SERVER, "context_length": 2048, "log_level": "info"}
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in settings.items()]
    with running(EngineServer(tmp_path, "sglang", tuple(words), ENVIRONMENT)) as server:
        check_equal_to_transformers(server, "sglang")
        process = psutil.Process(server.process.pid)
        shown = [word for one in (process, *process.children(recursive=True)) for word in one.cmdline()]
        assert not [word for word in shown if KEY in word], "the key is for its clients alone"
        assert "'api_key': '(hidden)'" in server.log.read_text()
        assert KEY not in server.log.read_text()
        others = process.children(recursive=True)
        assert others
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not psutil.wait_procs(others, timeout=10)[1]
