"""Many clients at once, some of them rude; afterwards nothing is left of them."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from served import CHAT, Served, chat, endless_model, events, question, written

CLIENTS = 12
TOKENS = 150
"""Enough for a compaction."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = endless_model(tmp_path_factory.mktemp("model"))
    with Served("--max-new-tokens", 1500, "--max-batch", 8, model=model) as server:
        yield server


def leave(served: Served, streamed: bool, first: int = 3) -> None:
    """Ask for a long answer and hang up: on a stream after some events, else soon."""
    asked = chat(question(0), max_tokens=1500, stream=streamed)
    if streamed:
        with httpx.Client(timeout=60) as client, client.stream("POST", served.url + CHAT, json=asked) as response:
            for _, _line in zip(range(first), response.iter_lines(), strict=False):
                pass
    else:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=httpx.Timeout(60, read=0.5)) as client:
            client.post(served.url + CHAT, json=asked)


def test_a_client_that_leaves_frees_its_row(served: Served) -> None:
    for streamed in (True, False):
        before = served.metric("dynts_generated_tokens_total")
        left = served.metric('dynts_requests_total{status="499"}')
        leave(served, streamed)
        served.wait_for("dynts_running", 0)
        served.wait_for('dynts_requests_total{status="499"}', left + 1)
        assert served.metric("dynts_live_kv_tokens") == 0
        assert 0 < served.metric("dynts_generated_tokens_total") - before < 1500


def test_a_crowd(served: Served) -> None:
    numbers = range(4)
    expected = [written(served.answer(**chat(question(number), max_tokens=TOKENS))["choices"][0]) for number in numbers]
    served.wait_for("dynts_running", 0)
    threads, bad = served.threads(), served.metric('dynts_requests_total{status="400"}')
    sizes = []

    def client(seed: int) -> int:
        rng, refused = random.Random(seed), 0
        for kind in rng.sample(["whole", "stream", "bad", "leave", "cut off"], k=5):
            number = rng.choice(numbers)
            asked = chat(question(number), max_tokens=TOKENS)
            with httpx.Client(base_url=served.url, timeout=120) as http:
                if kind == "whole":
                    reply = http.post(CHAT, json=asked)
                    assert reply.status_code == 200, reply.text
                    assert written(reply.json()["choices"][0]) == expected[number]
                elif kind == "stream":
                    with http.stream("POST", CHAT, json={**asked, "stream": True}) as response:
                        chunks = events(response.iter_lines())
                    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
                    parts = ["".join(d.get(f) or "" for d in deltas) for f in ("reasoning_content", "content")]
                    assert "</think>".join(filter(None, parts)) == expected[number]
                elif kind == "bad":
                    wrong: dict[str, Any] = rng.choice([{"temperature": 9}, {"n": "x"}, {"tools": [1]}, {"what": 0}])
                    assert http.post(CHAT, json={**asked, **wrong}).status_code == 400
                    refused += 1
                elif kind == "leave":
                    leave(served, streamed=True, first=rng.randint(1, 6))
                else:
                    leave(served, streamed=False)
        return refused

    def once() -> int:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return sum(pool.map(client, range(CLIENTS)))

    refused = once()
    served.wait_for("dynts_running", 0)
    served.wait_for("dynts_waiting", 0)
    sizes.append(served.metric("process_resident_memory_bytes"))
    assert served.metric('dynts_requests_total{status="400"}') - bad == refused == CLIENTS
    assert served.metric('dynts_requests_total{status="500"}') == 0
    assert served.metric("dynts_live_kv_tokens") == 0
    assert "Traceback" not in served.stderr()
    # the pool that encodes prompts keeps its threads: at most 32, and no more than processors and four
    assert served.threads() <= threads + 32
    settled = served.threads()
    for _ in range(60):
        served.post(**chat(question(0), max_tokens=1))
    assert served.threads() <= settled
    assert served.metric("process_resident_memory_bytes") - sizes[0] < 20 * 2**20
