"""`dynts serve` of the embedded model over an engine that brings a server of its own, beside that over transformers."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import dynts
from dynts.chat.prompts import user_message
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.solve import budget_for, schedule, solve
from dynts.tiny.task import HELD_OUT, make_problem
from served import Served

CONFIG = schedule(budget_for(0.4))
BUDGET = ("--budget", CONFIG.budget, "--local-window", CONFIG.local_window, "--retention-ratio", CONFIG.retention_ratio)
PROBLEM = make_problem(HELD_OUT[0])
ASKED: dict[str, Any] = {"model": "tiny", "messages": [user_message(PROBLEM.question)], "temperature": 0}
KEY = "sesame"
DOCS = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"


class EngineServer:
    """The process, and clients of it."""

    def __init__(self, folder: Path, engine: str, words: tuple[object, ...], environment: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        own = ["serve", WEIGHTS, "--engine", engine, "--predictor", WEIGHTS / "answer", *BUDGET]
        own += ["--dtype", "float32", "--port", port, "--served-model-name", "tiny", "--", *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dynts", *map(str, own)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DYNTS_API_KEY": KEY, **environment},
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


@contextmanager
def running(server: EngineServer) -> Iterator[EngineServer]:
    """Once it answers; ended in good order, for killed at once it would leave its engine's process behind."""
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(60)
        finally:
            server.process.kill()
            server.process.wait()


def check_equal_to_transformers(server: EngineServer, engine: str) -> None:
    """The server answers as that over transformers does, but for what the documentation says."""
    import openai

    with pytest.raises(openai.AuthenticationError):
        server.client("another").models.list()
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    model, tokenizer = load_tiny_model()
    with dynts.compress(model, "dynts", CONFIG, load_tiny_predictor(), tokenizer=tokenizer):
        (expected,) = solve(model, tokenizer, [PROBLEM])
    with Served(*BUDGET, "--served-model-name", "tiny") as other:
        beside = openai.OpenAI(base_url=f"{other.url}/v1", api_key="none", max_retries=0)
        told = both_ways(client, ASKED)
        assert told == both_ways(beside, ASKED)
        assert told["content"] == expected.text.partition("</think>")[2].strip()
        stop = told["reasoning_content"].split()[20]
        for more in ({"stop": [stop]}, {"max_tokens": 5}):
            first, second = (both_ways(one, ASKED | more) for one in (client, beside))
            assert first == second
        for fields, status in documented(engine).items():
            body = ASKED | {"max_tokens": 3, **json.loads(fields)}
            for url, wanted in zip((other.url, server.url), status, strict=True):
                headers = {"Authorization": f"Bearer {KEY}"}
                got = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
                assert got.status_code == wanted, (fields, url, got.text)
                assert wanted == 200 or got.json().get("error", got.json())["message"]
    used = told["usage"]["dynts"]
    assert used["compactions"] > 0, "a text that fits into the budget tests nothing"
    metrics = server.metrics()
    assert metrics["dynts_compactions_total"] == 2 * used["compactions"]
    assert metrics["dynts_evicted_tokens_total"] == 2 * used["evicted_tokens"]
    small = rf"budget {CONFIG.budget} is too small for a question of \d+ tokens"
    with pytest.raises(openai.BadRequestError, match=small):
        client.chat.completions.create(**ASKED | {"messages": [user_message(PROBLEM.question * 3)]})


def documented(engine: str) -> dict[str, tuple[int, int]]:
    """Status of requests that are answered differently, by their fields: over transformers, over the engine."""
    rows = [line.strip("| ").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    (at,) = {names.index(f"`--engine {engine}`") for names in rows if names[0] == "request"}
    found = {
        row[0].strip("`"): (int(row[1][:3]), int(row[at][:3])) for row in rows if re.fullmatch(r"`\{.*\}`", row[0])
    }
    assert len(found) >= 6
    return found


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
        parts[name] = text.strip()  # engines leave a space before the first word
    # SGLang has one of the two names
    assert parts.pop("reasoning") in ("", parts["reasoning_content"])
    assert len(pieces) > whole.usage.completion_tokens / 2
    assert chunks[-1].usage.model_dump()["dynts"] == usage["dynts"]
    counts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens", "dynts")}
    return {**parts, "finish_reason": whole.choices[0].finish_reason, "usage": counts}
