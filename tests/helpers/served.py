"""A real `dynts serve` of the embedded model, in a process of its own, on a free port of the loopback interface."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dynts.chat.prompts import user_message
from dynts.tiny import WEIGHTS
from dynts.tiny.task import HELD_OUT, make_problem

SETTINGS = ("--predictor", WEIGHTS / "answer", "--budget", 180, "--local-window", 50, "--retention-ratio", 0.4)
CHAT = "/v1/chat/completions"


def question(number: int, steps: int = 4) -> str:
    """A held-out problem with that many definitions."""
    return make_problem(HELD_OUT[number], steps=range(steps, steps + 1)).question


def chat(asked: str, **fields: Any) -> dict[str, Any]:
    """A request that asks as `dynts generate` does, greedily."""
    return {"messages": [user_message(asked)], "temperature": 0, **fields}


def written(choice: dict[str, Any]) -> str:
    """What the model wrote in an answer, its closing marker included if it got there."""
    message = choice["message"]
    return "</think>".join(filter(None, [message["reasoning_content"], message["content"]]))


def events(lines: Any) -> list[dict[str, Any]]:
    """The objects of a stream, which must end with [DONE]."""
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def endless_model(folder: Path) -> Path:
    """A copy of the embedded model that never ends its turn, in a new folder below."""
    copy = folder / "endless"
    shutil.copytree(WEIGHTS, copy)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**settings, "eos_token_id": None}))
    return copy


class Served:
    """The server; leaving the context kills it if it still runs.

    Args:
        options: of `dynts serve`.
        model: what to serve.
        environment: added to that of the tests.
    """

    def __init__(self, *options: object, model: Path = WEIGHTS, environment: dict[str, str] | None = None) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        words = ["serve", model, *SETTINGS, "--engine", "transformers", "--port", 0, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dynts", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, **(environment or {})},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("serving "), self.stderr()
        self.url = line.split()[-1].removesuffix("/v1")
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        self.errors.seek(0)
        return self.errors.read().decode()

    def post(self, path: str = CHAT, **fields: Any) -> httpx.Response:
        """Send a request."""
        return self.client.post(path, json=fields)

    def answer(self, **fields: Any) -> dict[str, Any]:
        """The answer to a chat request that must succeed."""
        response = self.post(**fields)
        assert response.status_code == 200, response.text
        return response.json()

    def metric(self, name: str) -> float:
        """A value of /metrics; 0 where it was never counted."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        return 0.0

    def wait_for(self, name: str, value: float, seconds: float = 30) -> None:
        """Wait until a metric has a value."""
        until = time.monotonic() + seconds
        while (now := self.metric(name)) != value:
            assert time.monotonic() < until, f"{name} is {now}"
            time.sleep(0.02)

    def threads(self) -> int:
        """How many threads it has."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def end(self, number: int = signal.SIGTERM, seconds: float = 30) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)
