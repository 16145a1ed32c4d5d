"""`dynts serve --engine vllm`, a real server for each model runner, beside that of `--engine transformers`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from vllm_engines import needs_vllm

import dynts
from dynts.chat.prompts import user_message
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from served import Served

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = schedule(budget_for(0.4))
BUDGET = ("--budget", CONFIG.budget, "--local-window", CONFIG.local_window, "--retention-ratio", CONFIG.retention_ratio)
PROBLEM = make_problem(HELD_OUT[0])
KEY = "sesame"
DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
ROW = re.compile(r"^\| `(\{.*\})` \| (\d+)\b[^|]*\| (\d+)\b[^|]*\| ", re.MULTILINE)


class Server:
    """The process, and clients of it."""

    def __init__(self, folder: Path, runner: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        metrics = folder / "metrics"
        metrics.mkdir()
        words = ["serve", WEIGHTS, "--engine", "vllm", "--predictor", WEIGHTS / "answer", *BUDGET]
        words += ["--dtype", "float32", "--port", port, "--served-model-name", "tiny"]
        words += ["--", "--max-model-len", 2048, "--max-num-seqs", 4, "--enforce-eager"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dynts", *map(str, words)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "DYNTS_API_KEY": KEY,
                    "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                    "VLLM_USE_V2_MODEL_RUNNER": str(int(runner == "v2")),
                },
            )

    def wait(self, seconds: float = 600) -> None:
        """Until it answers."""
        until = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    def client(self, key: str = KEY) -> Any:
        """OpenAI's."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def metrics(self) -> dict[str, float]:
        """What dynts counted."""
        lines = [line.rpartition(" ") for line in httpx.get(f"{self.url}/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if name.startswith("dynts_")}


@pytest.fixture(params=["v1", "v2"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path, request.param)
    try:
        started.wait()
        yield started
    finally:
        # killed at once, it would leave its engine's process behind
        started.process.terminate()
        try:
            started.process.wait(60)
        finally:
            started.process.kill()
            started.process.wait()


def test_it_speaks_as_the_other_engine_does(server: Server, request: pytest.FixtureRequest) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError):
        server.client("another").models.list()
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    model, tokenizer = load_tiny_model()
    with dynts.compress(model, "dynts", CONFIG, load_tiny_predictor(), tokenizer=tokenizer):
        (expected,) = solve(model, tokenizer, [PROBLEM])
    asked: dict[str, Any] = {"model": "tiny", "messages": [user_message(PROBLEM.question)], "temperature": 0}
    with Served(*BUDGET, "--served-model-name", "tiny") as other:
        beside = openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0)
        told = [both_ways(one, asked) for one in (client, beside)]
        assert told[0] == told[1]
        assert told[0]["content"] == expected.text.partition("</think>")[2].strip()
        stop = told[0]["reasoning_content"].split()[20]
        for more in ({"stop": [stop]}, {"max_tokens": 5}):
            first, second = (both_ways(one, asked | more) for one in (client, beside))
            assert first == second
        rows = ROW.findall(DOCS.read_text())
        assert len(rows) >= 6
        for fields, here, there in rows:
            body = asked | {"max_tokens": 3, **json.loads(fields)}
            got = [
                httpx.post(
                    f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
                )
                for url in (other.url, server.url)
            ]
            assert [reply.status_code for reply in got] == [int(here), int(there)], fields
            assert all(reply.json()["error"]["message"] for reply in got if reply.status_code != 200)
    compactions = told[0]["usage"]["dynts"]["compactions"]
    assert compactions > 0, "a text that fits into the budget tests nothing"
    metrics = server.metrics()
    assert metrics["dynts_compactions_total"] == 2 * compactions
    assert metrics["dynts_evicted_tokens_total"] == 2 * told[0]["usage"]["dynts"]["evicted_tokens"]
    with pytest.raises(
        openai.BadRequestError, match=rf"budget {CONFIG.budget} is too small for a question of \d+ tokens"
    ):
        client.chat.completions.create(**asked | {"messages": [user_message(PROBLEM.question * 3)]})
    if "v1" in request.node.name:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    else:
        end_with_the_engine(server, asked)


def both_ways(client: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """What a server says of a request: whole, which has to be what it streams."""
    whole = client.chat.completions.create(**asked)
    message, usage = whole.choices[0].message, whole.usage.model_dump()
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta for chunk in chunks for choice in chunk.choices]
    parts: dict[str, str] = {}
    for name in ("reasoning_content", "reasoning", "content"):
        text = getattr(message, name, None) or ""
        assert "".join(getattr(piece, name, None) or "" for piece in pieces) == text
        parts[name] = text.strip()  # vLLM leaves a space before the first word
    assert parts["reasoning"] == parts["reasoning_content"]
    assert len(pieces) > whole.usage.completion_tokens / 2
    assert chunks[-1].usage.model_dump()["dynts"] == usage["dynts"]
    counts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens", "dynts")}
    return {**parts, "finish_reason": whole.choices[0].finish_reason, "usage": counts}


def end_with_the_engine(server: Server, asked: dict[str, Any]) -> None:
    """Kill the engine's process while requests run: they get an error, and the server ends with one."""
    (engine,) = (
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if "EngineCore" in "".join([child.name(), *child.cmdline()])
    )

    def ask() -> int:
        url, headers = f"{server.url}/v1/chat/completions", {"Authorization": f"Bearer {KEY}"}
        try:
            return httpx.post(url, json=asked | {"n": 4, "temperature": 1}, headers=headers, timeout=60).status_code
        except httpx.TransportError:
            return 500

    with ThreadPoolExecutor(2) as pool:
        replies = [pool.submit(ask) for _ in range(2)]
        time.sleep(0.5)
        engine.kill()
        assert [reply.result() for reply in replies] == [500, 500]
    assert server.process.wait(60) not in (0, None)
    assert "EngineDeadError" in server.log.read_text()
