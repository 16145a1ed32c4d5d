"""Keys, full queues, and how a server ends."""

import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from command_line import run
from dynts.extras import pip_install
from dynts.tiny import WEIGHTS
from served import CHAT, SETTINGS, Served, chat, endless_model, events

TOKENS = 600


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("model"))


def test_a_key_a_full_queue_and_an_end_in_good_order(model: Path) -> None:
    with Served("--max-batch", 1, "--max-waiting", 1, model=model, environment={"DYNTS_API_KEY": "sesame"}) as served:
        assert served.process.stdout is not None
        said = served.process.stdout.readline().decode()
        assert said.startswith("at most 1 x 180 cached tokens, ")
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
            response = httpx.post(served.url + CHAT, json=chat("a"), headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="no").models.list()
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="sesame", max_retries=0)
        assert len(client.models.list().data) == 1

        served.client.headers["Authorization"] = "Bearer sesame"
        started = threading.Event()

        def read_stream() -> list[dict[str, Any]]:
            asked = {"prompt": "a", "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}
            with served.client.stream("POST", "/v1/completions", json=asked) as response:
                lines = []
                for line in response.iter_lines():
                    lines.append(line)
                    started.set()
                return events(lines)

        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(read_stream)
            assert started.wait(60)
            waiting = pool.submit(served.post, "/v1/completions", prompt="a", max_tokens=20)
            served.wait_for("dynts_waiting", 1)
            full = served.post("/v1/completions", prompt="a")
            assert full.status_code == 429
            assert int(full.headers["Retry-After"]) > 0
            assert full.json()["error"]["code"] == "queue_full"
            # both are under way: the end waits for them, and takes no others
            served.process.send_signal(signal.SIGTERM)
            chunks = running.result(60)
            assert waiting.result(60).status_code == 200
        assert chunks[-1]["usage"]["completion_tokens"] == TOKENS
        assert served.process.wait(30) == 0
        assert "Traceback" not in served.stderr()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/health")


def test_the_end_does_not_wait_for_ever(model: Path) -> None:
    with Served("--drain-seconds", 0.2, "--max-batch", 1, model=model) as served, ThreadPoolExecutor(2) as pool:
        started = threading.Event()

        def read_stream() -> list[str]:
            with served.client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as response:
                lines = []
                for line in response.iter_lines():
                    lines += [line] if line else []
                    started.set()
                return lines

        running = pool.submit(read_stream)
        assert started.wait(60)
        waiting = pool.submit(served.post, "/v1/completions", prompt="a")
        served.wait_for("dynts_waiting", 1)
        assert served.end(signal.SIGINT) == 0
        assert "shutting down" in running.result(10)[-1]
        refused = waiting.result(10)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert "Traceback" not in served.stderr()


def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line that `dynts serve` refuses with."""
    code, out, err = run(monkeypatch, capsys, "serve", *options)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("dynts: ")
    return line


def test_bad_options_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*options: object) -> str:
        return serve(monkeypatch, capsys, "no/such/model", "--engine", "transformers", *options)

    assert "needs --predictor" in refusal()
    assert "local_window (90) must be smaller" in refusal("--budget", 80, "--local-window", 90)
    assert "unknown method 'magic'" in refusal("--method", "magic")
    assert "API key is empty" in refusal(*SETTINGS, "--api-key", " ")
    assert "max_batch must be a whole number of at least 1, got 0" in refusal(*SETTINGS, "--max-batch", 0)
    assert "prefill_tokens must be a whole number of at least 1, got 0" in refusal(*SETTINGS, "--prefill-tokens", 0)
    assert "drain_seconds must not be negative" in refusal(*SETTINGS, "--drain-seconds", -1)
    assert "top_p must lie above 0" in refusal(*SETTINGS, "--top-p", 0)
    assert "options after -- are for --engine vllm" in refusal(*SETTINGS, "--", "--max-model-len", 9)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --host or --port" in refusal(*SETTINGS, "--port", taken.getsockname()[1])
    assert "cannot listen at no such host" in refusal(*SETTINGS, "--host", "no such host", "--api-key", "k")
    assert "folder no/such/model does not exist" in refusal(*SETTINGS, "--port", 0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None)
    line = serve(monkeypatch, capsys, WEIGHTS, *SETTINGS, "--engine", "transformers")
    assert pip_install("serve") in line


def test_help_needs_no_server_packages() -> None:
    script = (
        "import sys; sys.argv = ['dynts', 'serve', '--help']\n"
        "from dynts.cli import main\n"
        "try: main()\n"
        "finally: assert not {'fastapi', 'uvicorn', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--drain-seconds" in done.stdout
