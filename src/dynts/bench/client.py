"""Serve mode by URL: a stream of requests against a server that speaks OpenAI's API."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from dynts.bench.serving import Served
from dynts.bench.stream import Arrival, Reception
from dynts.errors import DyntsError

_FIELDS: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True}, "ignore_eos": True},
    {"stream_options": {"include_usage": True}},
    {},
)
"""What not every server takes, the most first."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How a server is asked.

    Attributes:
        path: below its URL.
        field: that holds the prompt.
        ids: whether the prompt goes there as token ids, instead of text.
        fields: further ones.
    """

    path: str
    field: str
    ids: bool
    fields: dict[str, Any]

    def body(self, model: str, tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: int) -> dict[str, Any]:
        """Return a request.

        Args:
            model: as the server calls it.
            tokenizer: the model's.
            prompt: token ids.
            tokens: that are asked for.
        """
        text = "" if self.ids else str(tokenizer.decode(prompt))
        given: Any = prompt if self.ids else text
        if self.field == "messages":
            given = [{"role": "user", "content": text}]
        return {"model": model, self.field: given, "max_tokens": tokens, "stream": True, **self.fields}

    def describe(self) -> str:
        """Return in words how a server is asked."""
        prompt = "token ids" if self.ids else "text"
        ends = "each for as many tokens as it asks for" if "ignore_eos" in self.fields else "which may end earlier"
        counted = "the server's usage" if "stream_options" in self.fields else "the events that hold text"
        return f"prompts as {prompt} to {self.path}, {ends}; tokens by {counted}"


_FORMS = (("/completions", "prompt", True), ("/completions", "prompt", False), ("/chat/completions", "messages", False))
WORDINGS = tuple(Wording(path, field, ids, fields) for (path, field, ids), fields in product(_FORMS, _FIELDS))
"""How to ask, in the order in which it is tried."""


def ask_server(
    url: str,
    tokenizer: PreTrainedTokenizerBase,
    stream: Sequence[Arrival],
    model: str | None = None,
    api_key: str | None = None,
    done: Callable[[], None] = lambda: None,
) -> Served:
    """Send a stream to a running server that speaks OpenAI's API, in the first wording that it takes.

    Args:
        url: of its API, such as http://127.0.0.1:8000/v1.
        tokenizer: of the model that it serves.
        stream: the requests.
        model: as the server calls it; None takes the first that it lists.
        api_key: what it wants to be sent.
        done: called after each request.

    Raises:
        DyntsError: it is not there, does not let us in, or takes no wording.
    """

    async def ask() -> Served:
        async with OpenAIServer(url, tokenizer, model, api_key) as server:
            wording = await server.find_wording()
            receptions = await server.serve(stream, wording, done)
        return Served(f"{server.model}", None, None, None, receptions, remark=wording.describe())

    return asyncio.run(ask())


class OpenAIServer:
    """A running server that speaks OpenAI's API. Leaving the context closes its connections.

    Args:
        url: of its API, such as http://127.0.0.1:8000/v1.
        tokenizer: of the model that it serves.
        model: as the server calls it; None takes the first that it lists.
        api_key: what it wants to be sent.
    """

    def __init__(
        self, url: str, tokenizer: PreTrainedTokenizerBase, model: str | None = None, api_key: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self.tokenizer = tokenizer
        self.model = model
        self.ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # what a long queue makes of the first token is measured, not given up
        timeout, limits = httpx.Timeout(None, connect=30), httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
        self._started = 0.0

    async def __aenter__(self) -> "OpenAIServer":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def find_wording(self) -> Wording:
        """Ask for a token or two in one wording after the other, and return the first that the server takes.

        Raises:
            DyntsError: it is not there, does not let us in, or takes none.
        """
        try:
            if self.model is None:
                self.model = await self._first_model()
            refusals = []
            for wording in WORDINGS:
                trial = Reception(Arrival(at=0.0, prompt=8, generated=2, seed=0))
                await self._ask(wording, trial)
                if trial.failure is None:
                    return wording
                refusals.append(trial.failure)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DyntsError(f"no answer from {self.url}: {error or type(error).__name__}; is it running?") from error
        raise DyntsError(f"{self.url} takes no request for {self.model}: {'; '.join(dict.fromkeys(refusals))}")

    async def serve(
        self, stream: Sequence[Arrival], wording: Wording, done: Callable[[], None] = lambda: None
    ) -> list[Reception]:
        """Send the requests of a stream as they come, and return what became of them.

        Args:
            stream: the requests.
            wording: how to ask.
            done: called after each request.
        """
        receptions = [Reception(asked) for asked in stream]
        self._started = time.perf_counter()

        async def send(reception: Reception) -> None:
            await asyncio.sleep(reception.asked.at - self._now)
            try:
                await self._ask(wording, reception)
            except (httpx.HTTPError, ValueError) as error:
                reception.fail(f"a broken answer: {type(error).__name__}")
            done()

        async with asyncio.TaskGroup() as group:
            for reception in receptions:
                group.create_task(send(reception))
        return receptions

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._started

    async def _first_model(self) -> str:
        response = await self._http.get(f"{self.url}/models")
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            reason = _reason(response.status_code, response.text)
            raise DyntsError(f"{self.url}/models lists no model ({reason}): give --served-model-name") from error

    async def _ask(self, wording: Wording, reception: Reception) -> None:
        """Send a request, and follow its answer to the end."""
        asked = reception.asked
        body = wording.body(str(self.model), self.tokenizer, asked.prompt_ids(self.ids), asked.generated)
        counted = None
        async with self._http.stream("POST", self.url + wording.path, json=body) as response:
            if response.status_code != httpx.codes.OK:
                reception.fail(_reason(response.status_code, (await response.aread()).decode(errors="replace")))
                return
            async for event in _events(response):
                if "error" in event:
                    reception.fail(_reason(None, json.dumps(event)))
                    return
                if any(_written(choice) for choice in event.get("choices") or []):
                    reception.take(self._now)
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
        if counted and reception.first is None:
            reception.take(self._now)  # tokens without text: all that is known is when they had come
        reception.tokens = reception.tokens if counted is None else counted
        if not reception.tokens:
            reception.fail("an answer without a token")


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a stream of events."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")  # httpx would end lines at U+2028 too, which JSON may hold
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)


def _written(choice: dict[str, Any]) -> bool:
    """Whether there is text in a choice of an event."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or any(delta.get(name) for name in ("content", "reasoning_content", "reasoning")))


def _reason(status: int | None, text: str) -> str:
    """Return why a request failed: the status, if it is one, and the server's message."""
    try:
        answer = json.loads(text)
        error = answer["error"] if "error" in answer else answer["detail"]
        message = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        message = text
    return message if status is None else f"{status} {message}".strip()
