"""`dynts serve --engine vllm`, a real server for each model runner, beside that of `--engine transformers`."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from vllm_engines import needs_vllm

from engine_server import ASKED, KEY, EngineServer, check_equal_to_transformers, running

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(params=["v1", "v2"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineServer]:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    words = ("--max-model-len", 2048, "--max-num-seqs", 4, "--enforce-eager")
    environment = {
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_USE_V2_MODEL_RUNNER": str(int(request.param == "v2")),
    }
    with running(EngineServer(tmp_path, "vllm", words, environment)) as started:
        yield started


def test_it_speaks_as_the_other_engine_does(server: EngineServer, request: pytest.FixtureRequest) -> None:
    check_equal_to_transformers(server, "vllm")
    message = server.client().chat.completions.create(**ASKED).choices[0].message
    assert message.reasoning == message.reasoning_content
    if "v1" in request.node.name:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    else:
        end_with_the_engine(server)


def end_with_the_engine(server: EngineServer) -> None:
    """Kill the engine's process while requests run: they get an error, and the server ends with one."""
    (engine,) = (
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if "EngineCore" in "".join([child.name(), *child.cmdline()])
    )

    def ask() -> int:
        url, headers = f"{server.url}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
        try:
            return httpx.post(url, json=ASKED | {"n": 4, "temperature": 1}, headers=headers, timeout=60).status_code
        except httpx.TransportError:
            return 500

    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(ask) for _ in range(2)]
        time.sleep(0.5)
        engine.kill()
        assert [reply.result() for reply in replies] == [500, 500]
    assert server.process.wait(60) not in (0, None)
    assert "EngineDeadError" in server.log.read_text()
