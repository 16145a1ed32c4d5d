"""The endpoints, asked over the network."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from command_line import run
from dynts.tiny import WEIGHTS
from served import CHAT, SETTINGS, Served, chat, events, question, written

LIMIT = 300
"""New tokens, on both sides of a comparison."""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(
        "--max-new-tokens", LIMIT, "--max-batch", 4, "--served-model-name", "tiny", "--max-body-bytes", 20_000
    ) as server:
        yield server


def stream(served: Served, path: str = CHAT, **fields: Any) -> list[dict[str, Any]]:
    with served.client.stream("POST", path, json={**fields, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return events(response.iter_lines())


def joined(chunks: list[dict[str, Any]], field: str, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get(field) or "" for choice in choices)


@pytest.mark.parametrize("number", [0, 1])
def test_the_answer_is_that_of_dynts_generate(
    served: Served, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, "--max-new-tokens", LIMIT, "--temperature", 0, "--json"]
    code, out, _ = run(monkeypatch, capsys, "generate", question(number, 8), "--model", WEIGHTS, *settings)
    assert code == 0
    generated = json.loads(out)
    reply = served.answer(**chat(question(number, 8)))
    assert written(reply["choices"][0]) == generated["text"]
    assert reply["choices"][0]["finish_reason"] == ("stop" if generated["finished"] else "length")
    usage = reply["usage"]
    assert usage["prompt_tokens"] == generated["prompt_tokens"]
    assert usage["completion_tokens"] == generated["generated_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    compactions = generated["compactions"]
    assert compactions
    assert usage["dynts"] == {
        "method": "DynTS",
        "budget": 180,
        "compactions": len(compactions),
        "evicted_tokens": sum(item["before"] - item["after"] for item in compactions),
        "peak_cached_tokens": generated["peak_tokens"],
    }


def test_a_stream_says_the_same(served: Served) -> None:
    asked = chat(question(2))
    whole = served.answer(**asked)
    chunks = stream(served, **asked, stream_options={"include_usage": True})
    message = whole["choices"][0]["message"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert joined(chunks, "reasoning_content") == message["reasoning_content"]
    assert joined(chunks, "content") == message["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1] if chunk["choices"][0]["finish_reason"]] == [
        whole["choices"][0]["finish_reason"]
    ]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len(chunks) > 100


def test_stop_strings_across_tokens(served: Served) -> None:
    text = written(served.answer(**chat(question(3)))["choices"][0])
    words = text.split(" ")
    stop = f"{words[20][-1]} {words[21]} {words[22][0]}"  # begins and ends within tokens
    expected = text[: text.index(stop)]
    asked = chat(question(3), stop=[stop, "never written"])
    reply = served.answer(**asked)
    choice = reply["choices"][0]
    thinking = {"reasoning_content": expected, "reasoning": expected}
    assert choice["message"] == {"role": "assistant", "content": "", **thinking}
    assert choice["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] < 40
    chunks = stream(served, **asked)
    assert joined(chunks, "reasoning_content") == expected
    assert joined(chunks, "content") == ""


def test_plain_completions_keep_the_markers_and_take_tokens(served: Served) -> None:
    prompt = "<user> " + chat(question(4))["messages"][0]["content"] + " <assistant> <think>\n"
    expected = written(served.answer(**chat(question(4)))["choices"][0])
    short: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
    reply = served.post("/v1/completions", prompt=prompt, **short).json()
    # the tokenizer adds what begins a text, as the chat template does
    from dynts.models import load_tokenizer

    tokenizer = load_tokenizer(WEIGHTS)
    ids = tokenizer.encode(prompt, add_special_tokens=True)
    again = served.post("/v1/completions", prompt=[ids, ids[:9]], n=2, **short).json()
    assert reply["object"] == "text_completion"
    assert again["choices"][0]["text"] == again["choices"][1]["text"] == reply["choices"][0]["text"]
    assert again["choices"][2]["text"] == again["choices"][3]["text"] != reply["choices"][0]["text"]
    assert again["usage"]["prompt_tokens"] == len(ids) + 9
    begun = tokenizer.encode(f"<begin>{prompt}", add_special_tokens=False)
    same = served.post("/v1/completions", prompt=begun, temperature=0).json()
    expected = f" {expected}"  # the text goes on with the prompt's, after whose last word a space comes
    assert same["choices"][0]["text"] == expected
    chunks = stream(served, "/v1/completions", prompt=begun, temperature=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected


def test_seeds_and_several_completions(served: Served) -> None:
    asked: dict[str, Any] = {"prompt": "a b", "temperature": 2, "top_p": 1.0, "top_k": -1, "max_tokens": 30}

    def texts(**fields: Any) -> list[str]:
        return [choice["text"] for choice in served.post("/v1/completions", **{**asked, **fields}).json()["choices"]]

    seven = texts(seed=7, n=2)
    assert seven == texts(seed=7, n=2)
    assert seven[0] != seven[1]
    assert texts(seed=8) == seven[1:]  # the second of seed 7 is the first of seed 8
    assert len({texts()[0] for _ in range(4)}) > 1
    greedy = texts(temperature=0)
    assert texts(top_k=1) == texts(top_p=1e-9) == texts(temperature=1e-300) == greedy
    assert seven[0] != greedy[0]


BAD = [
    ({}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    (chat("a", foo=1), 400, "foo"),
    (chat("a", logprobs=True), 400, "logprobs"),
    (chat("a", logprobs=0), 400, "logprobs"),
    (chat("a", n=True), 400, "n"),
    (chat("a", tools=[{"type": "function"}]), 400, "tools"),
    (chat("a", frequency_penalty=0.5), 400, "frequency_penalty"),
    (chat("a", response_format={"type": "json_object"}), 400, "response_format"),
    (chat("a", max_tokens=0), 400, "max_tokens"),
    (chat("a", max_tokens=LIMIT + 1), 400, "max_tokens"),
    (chat("a", max_completion_tokens=LIMIT + 1), 400, "max_completion_tokens"),
    (chat("a", max_tokens="5"), 400, "max_tokens"),
    (chat("a", max_tokens=True), 400, "max_tokens"),
    (chat("a", temperature=-1), 400, "temperature"),
    (chat("a", top_p=0), 400, "top_p"),
    (chat("a", n=0), 400, "n"),
    (chat("a", n=5), 400, "n"),
    (chat("a", seed=2**63), 400, "seed"),
    (chat("a", stop=[""]), 400, "stop"),
    (chat("a", stop=["a"] * 17), 400, "stop"),
    (chat("a", stop=3), 400, "stop"),
    (chat("a", stream_options={"include_usage": True}), 400, "stream_options"),
    (chat("a", stream=True, stream_options={"extra": 1}), 400, "stream_options.extra"),
    (chat("a", model="gpt"), 404, "model"),
    ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, 400, "messages.0.content"),
    (chat("a " * 200), 400, "messages"),
]


@pytest.mark.parametrize(("fields", "status", "param"), BAD, ids=str)
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_requests_name_the_field(
    served: Served, fields: dict[str, Any], status: int, param: str, streamed: bool
) -> None:
    extra = {"stream": True} if streamed and param != "stream_options" else {}
    response = served.post(**{**fields, **extra})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in response.text
    if param not in ("messages", "stream_options", "n", "model", "max_completion_tokens") and "." not in param:
        assert param in error["message"] or "tokens" in error["message"]


def test_a_prompt_that_is_too_long_names_both_numbers_and_the_fix(served: Served) -> None:
    length = 190 + served.answer(**chat("a " * 10, max_tokens=1))["usage"]["prompt_tokens"]
    error = served.post(**chat("a " * 200)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    fix = f"use a budget of at least {length + 50 + 3}"  # floor(0.4 * 3) is the first to be 1
    for part in ("budget 180", f"question of {length} tokens", fix, "shorter prompt"):
        assert part in error["message"]
    error = served.post("/v1/completions", prompt=[5] * 3000).json()["error"]
    assert "3000 tokens" in error["message"]
    assert "2048" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "\\ud800": 1}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"prompt": [1, "a"]}',
        b'{"prompt": [99999]}',
        b'{"prompt": [-1]}',
        b'{"prompt": ""}',
        b'{"prompt": []}',
        b'{"prompt": [[]]}',
        b'{"prompt": [true]}',
    ],
    ids=lambda body: body[:60].decode(errors="replace"),
)
def test_bodies_that_are_no_request(served: Served, body: bytes) -> None:
    path = "/v1/completions" if b"prompt" in body else CHAT
    response = served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert "Traceback" not in response.text


def test_harmless_fields_are_ignored(served: Served) -> None:
    neutral: dict[str, Any] = {"user": "u", "metadata": {"a": "b"}, "store": False, "logprobs": False, "tools": []}
    neutral |= {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "response_format": {"type": "text"}}
    neutral |= {"top_logprobs": 0}
    asked = chat(question(6), max_tokens=5)
    plain = served.answer(**asked)["choices"]
    assert served.answer(**asked, **neutral)["choices"] == plain
    parts = [{"type": "text", "text": asked["messages"][0]["content"]}]
    assert served.answer(**{**asked, "messages": [{"role": "user", "content": parts}]})["choices"] == plain


def test_requests_that_are_too_large(served: Served) -> None:
    assert served.post(**chat("a " * 10_000)).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'{"messages": [{"role": "user", "content": "'
        for _ in range(30):
            yield b"a" * 1000
        yield b'"}]}'

    response = served.client.post(CHAT, content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "20000 bytes" in response.json()["error"]["message"]


def test_other_paths(served: Served) -> None:
    models = served.client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert served.client.get("/v1/models/tiny").json() == models["data"][0]
    assert served.client.get("/v1/models/some/other").json()["error"]["code"] == "model_not_found"
    assert served.client.get("/health").json() == {"status": "ok"}
    for path, status in (("/v1/embeddings", 404), ("/v1/models/other", 404), ("/", 404), ("/docs", 404), (CHAT, 405)):
        response = served.client.get(path)
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_the_openai_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    messages: Any = chat(question(7))["messages"]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    message: Any = whole.choices[0].message
    assert message.content.strip().startswith(("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"))
    assert whole.usage is not None
    assert whole.usage.model_extra["dynts"]["budget"] == 180  # type: ignore[index]
    streamed = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    deltas: list[Any] = []
    usage = None
    for chunk in streamed:
        usage = chunk.usage or usage
        deltas += [choice.delta for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    thinking = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thinking == message.reasoning_content
    assert usage == whole.usage
    text = client.completions.create(model="tiny", prompt="a", max_tokens=3)
    assert text.choices[0].finish_reason == "length"
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.chat.completions.create(model="tiny", messages=messages, temperature=5)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)


def test_nothing_failed_on_the_server_side(served: Served) -> None:
    assert served.metric('dynts_requests_total{status="500"}') == 0
    assert "Traceback" not in served.stderr()
