"""What the servers of vLLM and SGLang answer, in the words of dynts' own: an ASGI middleware for their apps."""

import json
import os
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynts.cache.lengths import cache_lengths
from dynts.engines.settings import PluginSettings

PATHS = ("/v1/chat/completions", "/v1/completions")


class Replies:
    """Adds to the answers of an engine's OpenAI-compatible app what it has no place for.

    Thinking is there as `reasoning_content` beside vLLM's `reasoning`. The usage of one completion has `dynts`; it
    follows from the lengths of prompt and completion, as the evictions themselves do. Usage of several completions
    does not tell their lengths, and is left as it is.

    Args:
        app: the engine's.
        settings: of the plugin; by default what the environment says.
    """

    def __init__(self, app: ASGIApp, settings: PluginSettings | None = None) -> None:
        self.app = app
        self.settings = settings or PluginSettings.from_environment(os.environ)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Args:
            scope: what is asked of the app.
            receive: gives the request's body.
            send: takes the answer.
        """
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        reply = _Reply(send, self.settings)
        await self.app(scope, receive, reply.send)


class _Reply:
    """One answer on its way: events of a stream pass at once, everything else is held until it is whole."""

    def __init__(self, send: Send, settings: PluginSettings | None) -> None:
        self.forward = send
        self.settings = settings
        self.start: Message = {}
        self.held = b""
        self.completions: set[int] = set()

    async def send(self, message: Message) -> None:
        """Pass a message on, changed."""
        if message["type"] == "http.response.start":
            self.start = message
            self.streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            if self.streams:
                await self.forward(message)
            return
        self.held += message.get("body", b"")
        more = message.get("more_body", False)
        if self.streams:
            whole, end, rest = self.held.rpartition(b"\n\n")
            events, self.held = (whole + end, rest) if more else (self.held, b"")
            body = b"\n\n".join(map(self._event, events.split(b"\n\n")))
            await self.forward({**message, "body": body})
        elif not more:
            body = self._translated(self.held)
            headers = [(name, text) for name, text in self.start["headers"] if name.lower() != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await self.forward({**self.start, "headers": headers})
            await self.forward({**message, "body": body})

    def _event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data: ")
        return event if data == event or data == b"[DONE]" else b"data: " + self._translated(data)

    def _translated(self, body: bytes) -> bytes:
        """A JSON object of the engine's, with what dynts adds."""
        try:
            reply = json.loads(body)
        except ValueError:
            return body
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if choices is None:
            return body
        for choice in choices:
            self.completions.add(choice["index"])
            said = choice.get("message") or choice.get("delta") or {}
            if "reasoning" in said:
                said["reasoning_content"] = said["reasoning"]
        usage = reply.get("usage")
        if usage and self.settings is not None and len(self.completions) == 1:
            usage["dynts"] = cache_usage(usage["prompt_tokens"], usage["completion_tokens"], self.settings)
        return json.dumps(reply, ensure_ascii=False).encode()


def cache_usage(prompt_tokens: int, completion_tokens: int, settings: PluginSettings) -> dict[str, Any]:
    """Return what the budget did with a completion: that follows from lengths.

    Args:
        prompt_tokens: how many it read.
        completion_tokens: how many it wrote.
        settings: of the plugin.
    """
    schedule = settings.schedule
    lengths = cache_lengths(prompt_tokens, completion_tokens, schedule)
    return {
        "method": type(settings.policy).__name__,
        "budget": schedule.budget,
        "compactions": len(lengths.compactions),
        "evicted_tokens": sum(before - after for _, before, after in lengths.compactions),
        "peak_cached_tokens": lengths.peak,
    }
