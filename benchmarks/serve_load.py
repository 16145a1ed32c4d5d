"""Minutes of mixed load on `dynts serve`: every answer checked, every bad request refused, memory watched, then
SIGTERM.

    python benchmarks/serve_load.py --minutes 30 --engine transformers --out serve_load.json

starts a server of the embedded model and asks it from another process: short and long answers, whole and streamed,
several at once, clients that hang up, and bad requests. Greedy answers must be those that `dynts.compress` gives for
the same prompt alone. Each minute it notes the server's memory, threads and gauges, which have to be back at zero in
the end.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from dynts.chat.prompts import user_message
from dynts.config import CompressionConfig, Sampling
from dynts.decode.answers import answer_questions
from dynts.decode.compress import compress
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.task import HELD_OUT, make_problem

CONFIG = CompressionConfig(budget=246, local_window=71, retention_ratio=0.4)
MAX_NEW_TOKENS = 900
TOGETHER = 8
PIECE = 48
"""So few that the questions are read in pieces."""
CHAT = "/v1/chat/completions"
BAD: list[dict[str, Any]] = [
    {"temperature": -1},
    {"max_tokens": 10**9},
    {"max_tokens": "many"},
    {"n": 0},
    {"messages": "hello"},
    {"messages": [{"role": "user", "content": "a " * 220}]},  # no room in the budget
    {"messages": [{"role": "user", "content": "a " * 1500}]},  # nor in the model
]
BAD_OF_VLLM: list[dict[str, Any]] = [{"tools": [{"type": "function"}]}, {"model": "another"}]
BAD_HERE: list[dict[str, Any]] = [
    *BAD_OF_VLLM,
    {"temperature": 9},
    {"n": 1000},
    {"stop": [""]},
    {"logprobs": True},
    {"what": 0},
    {"messages": []},
    {"messages": [{"role": "user", "content": "a " * 700_000}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
]
"""Which the engines' servers take, or answer in their own way."""
SGLANG_ON_CPU = [
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--disable-cuda-graph", "--max-total-tokens", 2200),
]
"""With little more room than eight requests may take."""
GAUGES = {
    "transformers": ("dynts_live_kv_tokens", "dynts_running", "dynts_waiting"),
    "vllm": ("dynts_live_tokens", "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "sglang": ("dynts_live_tokens", "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:kv_used_tokens"),
}
COUNTERS = {
    "transformers": ("dynts_compactions_total", "dynts_generated_tokens_total"),
    "vllm": ("dynts_compactions_total", "vllm:generation_tokens_total", "vllm:num_preemptions_total"),
    "sglang": ("dynts_compactions_total", "sglang:generation_tokens_total", "sglang:num_retracted_requests_total"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--questions", type=int, default=20, help="of 4 to 10 definitions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=sorted(GAUGES), default="transformers")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    asked = [make_problem(number, steps=range(4, 11)).question for number in rng.sample(HELD_OUT, arguments.questions)]
    expected = expected_answers(asked)
    with TemporaryDirectory() as metrics:
        process, url = start(arguments.engine, metrics)
        load = Load(url, asked, expected, arguments.engine, psutil.Process(process.pid))
        samples = load.run(arguments.minutes * 60, arguments.clients, arguments.seed)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(120)
    report: dict[str, Any] = {
        **{name: getattr(arguments, name) for name in ("engine", "minutes", "clients")},
        **{"counts": load.counts, "faults": load.faults, "exit_code": exit_code, "samples": samples},
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out:
        write_text_whole(arguments.out, f"{text}\n")
    leaked = any(samples[-1][name] for name in GAUGES[arguments.engine])
    sys.exit(1 if load.faults or leaked or exit_code else 0)


def expected_answers(asked: list[str]) -> list[str]:
    """What the embedded model answers greedily under the budget, one question at a time."""
    model, tokenizer = load_tiny_model()
    sampling = Sampling(MAX_NEW_TOKENS, temperature=0)
    with compress(model, "dynts", CONFIG, load_tiny_predictor(), tokenizer=tokenizer) as session:
        named = ((str(index), question) for index, question in enumerate(asked))
        return [answer.text for answer in answer_questions(session, tokenizer, named, sampling)]


def start(engine: str, metrics: str) -> tuple[subprocess.Popen[str], str]:
    """A server of the embedded model on a free port, and its address. metrics: an empty folder for vLLM's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", WEIGHTS, "--predictor", WEIGHTS / "answer", "--engine", engine, "--port", port]
    words += ["--budget", CONFIG.budget, "--local-window", CONFIG.local_window]
    words += ["--retention-ratio", CONFIG.retention_ratio, "--served-model-name", "tiny", "--dtype", "float32"]
    own = {
        "transformers": ["--max-new-tokens", MAX_NEW_TOKENS, "--max-batch", TOGETHER, "--prefill-tokens", PIECE],
        "vllm": ["--", "--max-model-len", 1024, "--max-num-seqs", TOGETHER, "--block-size", 32],
        "sglang": ["--", "--context-length", 1024, "--max-running-requests", TOGETHER, *SGLANG_ON_CPU],
    }
    environments = {
        "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1", "PROMETHEUS_MULTIPROC_DIR": metrics},
        "sglang": {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dynts", *map(str, words + own[engine])],
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environments.get(engine, {})},
    )
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                return process, url
        time.sleep(0.5)
    raise SystemExit("the server did not start; see its error above")


class Load:
    """The clients and what they saw.

    Attributes:
        counts: requests by kind.
        faults: what went wrong, a line each; empty if nothing did.
    """

    def __init__(self, url: str, asked: list[str], expected: list[str], engine: str, server: psutil.Process) -> None:
        self.url = url
        self.asked = asked
        self.expected = expected
        self.engine = engine
        self.server = server
        self.bad = BAD + {"vllm": BAD_OF_VLLM, "sglang": [], "transformers": BAD_HERE}[engine]
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.lock = threading.Lock()

    def run(self, seconds: float, clients: int, seed: int) -> list[dict[str, float]]:
        """Load the server for that long; what it reported each minute, and a second after the last answer."""
        until = time.monotonic() + seconds
        samples: list[dict[str, float]] = []
        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(self._client, random.Random(f"{seed} {number}"), until) for number in range(clients)]
            begun = time.monotonic()
            while time.monotonic() < until:
                time.sleep(min(60.0, max(0.0, until - time.monotonic())))
                samples.append(self._sample(begun))
                last = samples[-1]
                print(f"{last['minute']:.1f} min: {dict(self.counts)}, {last['memory_mib']:.0f} MiB", file=sys.stderr)
            for client in running:
                client.result()
        time.sleep(1.0)
        samples.append(self._sample(begun))
        return samples

    def _client(self, rng: random.Random, until: float) -> None:
        kinds = {self._whole: 4, self._stream: 4, self._sampled: 2, self._leave: 2, self._cut_off: 1, self._bad: 3}
        while time.monotonic() < until:
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            name = kind.__name__.removeprefix("_")
            try:
                with httpx.Client(base_url=self.url, timeout=300) as http:
                    fault = kind(http, rng)
            except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                fault = repr(error)
            with self.lock:
                self.counts[name] += 1
                if fault:
                    self.faults.append(f"{name}: {fault}"[:300])

    def _chat(self, rng: random.Random, **fields: Any) -> tuple[dict[str, Any], str]:
        number = rng.randrange(len(self.asked))
        return {"messages": [user_message(self.asked[number])], "temperature": 0, **fields}, self.expected[number]

    def _whole(self, http: httpx.Client, rng: random.Random) -> str | None:
        body, expected = self._chat(rng)
        reply = http.post(CHAT, json=body).json()
        message = reply["choices"][0]["message"]
        return differs(message.get("reasoning_content"), message["content"], expected)

    def _stream(self, http: httpx.Client, rng: random.Random) -> str | None:
        body, expected = self._chat(rng, stream=True, stream_options={"include_usage": True})
        parts = {"reasoning_content": "", "content": ""}
        with http.stream("POST", CHAT, json=body) as response:
            lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        if lines[-1] != "[DONE]":
            return f"the stream ended with {lines[-1]}"
        chunks = [json.loads(line) for line in lines[:-1]]
        for chunk in chunks[:-1]:
            delta = chunk["choices"][0]["delta"]
            for name in parts:
                parts[name] += delta.get(name) or ""
        statistics = chunks[-1]["usage"].get("dynts")
        if statistics["peak_cached_tokens"] > CONFIG.budget:
            return f"more than {CONFIG.budget} cached tokens: {statistics}"
        return differs(parts["reasoning_content"], parts["content"], expected)

    def _sampled(self, http: httpx.Client, rng: random.Random) -> str | None:
        """Short ones, of which only the form is known."""
        tokens, completions = rng.randint(1, 40), rng.randint(1, 3)
        body, _ = self._chat(rng, max_tokens=tokens, n=completions, temperature=1.2)
        reply = http.post(CHAT, json=body).json()
        used = reply["usage"]["completion_tokens"]
        right = len(reply["choices"]) == completions and completions <= used <= completions * tokens
        return None if right else f"{completions} x {tokens} tokens were asked for, got {reply}"

    def _leave(self, http: httpx.Client, rng: random.Random) -> str | None:
        body, _ = self._chat(rng, stream=True)
        with http.stream("POST", CHAT, json=body) as response:
            for _, _line in zip(range(rng.randint(0, 60)), response.iter_lines(), strict=False):
                pass
        return None

    def _cut_off(self, http: httpx.Client, rng: random.Random) -> str | None:
        body, _ = self._chat(rng)
        with suppress(httpx.ReadTimeout):
            http.post(CHAT, json=body, timeout=httpx.Timeout(60, read=rng.uniform(0.01, 1)))
        return None

    def _bad(self, http: httpx.Client, rng: random.Random) -> str | None:
        body, _ = self._chat(rng)
        content = json.dumps({**body, **rng.choice(self.bad)})
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content) - 1)]
        response = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        reply = response.json() if 400 <= response.status_code < 500 else {}
        refused = reply.get("error", reply).get("message")  # SGLang has nothing around it
        return None if refused else f"{content[:100]} got {response.status_code}: {response.text[:100]}"

    def _sample(self, begun: float) -> dict[str, float]:
        values: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text):
            for one in family.samples:
                values[one.name] += one.value
        processes = [self.server, *self.server.children(recursive=True)]
        return {
            "minute": (time.monotonic() - begun) / 60,
            "memory_mib": sum(process.memory_info().rss for process in processes) / 2**20,
            "threads": sum(process.num_threads() for process in processes),
            **{name: values[name] for name in (*GAUGES[self.engine], *COUNTERS[self.engine])},
        }


def differs(reasoning: str | None, content: str, expected: str) -> str | None:
    """How an answer differs from the expected text; None if it does not."""
    # vLLM's detokenizer leaves a space before the first word
    given = "</think>".join(filter(None, [reasoning, content])).removeprefix(" ")
    if given == expected:
        return None
    same = next((place for place, pair in enumerate(zip(given, expected, strict=False)) if len(set(pair)) > 1), 0)
    return f"expected {expected[same : same + 80]!r} after {same} characters, got {given[same : same + 80]!r}"


if __name__ == "__main__":
    main()
