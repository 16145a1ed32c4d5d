"""`dynts serve --engine vllm`, one real server, asked with OpenAI's own client."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import needs_vllm

import dynts
from dynts.cache.lengths import cache_lengths
from dynts.chat.prompts import user_message
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem

pytestmark = [needs_vllm, pytest.mark.slow]

CONFIG = schedule(budget_for(0.4))
PROBLEM = make_problem(HELD_OUT[0])
KEY = "sesame"


class Server:
    """The process, and clients of it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        metrics = folder / "metrics"
        metrics.mkdir()
        words = ["serve", WEIGHTS, "--engine", "vllm", "--predictor", WEIGHTS / "answer", "--budget", CONFIG.budget]
        words += ["--local-window", CONFIG.local_window, "--retention-ratio", CONFIG.retention_ratio]
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
                },
            )

    def wait(self, seconds: float = 240) -> None:
        """Until it answers."""
        import httpx

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
        import httpx

        lines = [line.rpartition(" ") for line in httpx.get(f"{self.url}/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if name.startswith("dynts_")}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
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


def test_one_server(server: Server) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError):
        server.client("another").models.list()
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]

    model, tokenizer = load_tiny_model()
    with dynts.compress(model, "dynts", CONFIG, load_tiny_predictor(), tokenizer=tokenizer):
        (expected,) = solve(model, tokenizer, [PROBLEM])
    asked: dict[str, Any] = {"model": "tiny", "messages": [user_message(PROBLEM.question)], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    said = whole.choices[0].message
    thinking, _, answer = expected.text.partition("</think>")
    assert (said.reasoning.strip(), said.content.strip()) == (thinking.strip(), answer.strip())
    assert whole.choices[0].finish_reason == "stop"
    pieces = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(getattr(piece, "reasoning", None) or "" for piece in pieces) == said.reasoning
    assert "".join(piece.content or "" for piece in pieces) == said.content
    assert len(pieces) > 20
    compactions = len(cache_lengths(whole.usage.prompt_tokens, whole.usage.completion_tokens, CONFIG).compactions)
    assert compactions > 0, "a text that fits into the budget tests nothing"
    metrics = server.metrics()
    assert metrics["dynts_compactions_total"] == 2 * compactions
    assert metrics["dynts_evicted_tokens_total"] > 0

    with pytest.raises(
        openai.BadRequestError, match=rf"budget {CONFIG.budget} is too small for a question of \d+ tokens"
    ):
        client.chat.completions.create(**asked | {"messages": [user_message(PROBLEM.question * 3)]})
    assert client.chat.completions.create(**asked, max_tokens=5).usage.completion_tokens == 5

    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
