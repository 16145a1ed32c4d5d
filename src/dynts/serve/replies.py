"""One request and its answer: its rows under way, and what they tell as OpenAI's API does, whole or as a stream."""

import asyncio
import json
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, ClassVar

from dynts.chat.markers import ThinkFormat
from dynts.chat.prompts import Prompt
from dynts.chat.thinking import Parts, ReasoningSplit
from dynts.chat.written import ClosingWatch
from dynts.serve.admission import Admission
from dynts.serve.batching import Batcher
from dynts.serve.protocol import ApiError, CacheUsage, ChatRequest, FinishReason, GenerationRequest, Usage
from dynts.serve.running import Ended, Event, Piece, Row

Fields = dict[str, Any]
"""Fields of a choice that hold text, a piece of it or all."""


class TextForm:
    """The choices of /v1/completions: the text as the model wrote it, think markers included."""

    identity, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    opening: ClassVar[Fields | None] = None
    """What a stream begins with."""

    def whole(self, index: int, text: str, reason: FinishReason) -> Fields:
        """Return what a choice says of a complete text.

        Args:
            index: of the completion.
            text: all that it wrote.
            reason: why it ended.
        """
        return {"text": text}

    def piece(self, index: int, text: str) -> Iterator[Fields]:
        """Yield what more text of a completion adds, a chunk each.

        Args:
            index: of the completion.
            text: what comes next of it.
        """
        yield {"text": text}

    def ending(self, index: int, reason: FinishReason) -> Iterator[Fields]:
        """Yield what the end of a completion adds; the last chunk has its reason.

        Args:
            index: of the completion.
            reason: why it ended.
        """
        yield {"text": ""}


class ChatForm(TextForm):
    """The choices of /v1/chat/completions: thinking and answer apart.

    Args:
        thinks: whether the prompt ends within the thinking, see `dynts.chat.prompts.ChatPrompt`.
        format: how the model writes its think markers.
        watch: told of every answer.
    """

    identity, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    # says who speaks, at once: a free row may have to be waited for
    opening: ClassVar[Fields | None] = {"delta": {"role": "assistant", "content": ""}}

    def __init__(self, thinks: bool | None, format: ThinkFormat, watch: ClosingWatch) -> None:
        self.watch = watch
        self._splits: dict[int, ReasoningSplit] = defaultdict(lambda: ReasoningSplit(thinks, format))

    def whole(self, index: int, text: str, reason: FinishReason) -> Fields:
        """Return a message; see `TextForm.whole`."""
        reasoning, content = self._splits[index].whole(text)
        self.watch.note(reason == "stop", self._splits[index].closed)
        return {"message": {"role": "assistant", "content": content, **_reasoning(reasoning)}}

    def piece(self, index: int, text: str) -> Iterator[Fields]:
        """Yield what is certain of the thinking, then of the answer; see `TextForm.piece`."""
        return _deltas(self._splits[index].feed(text))

    def ending(self, index: int, reason: FinishReason) -> Iterator[Fields]:
        """Yield what the split held back; see `TextForm.ending`."""
        self.watch.note(reason == "stop", self._splits[index].closed)
        yield from _deltas(self._splits[index].flush())
        yield {"delta": {}}


def _deltas(parts: Parts) -> Iterator[Fields]:
    if parts.reasoning:
        yield {"delta": _reasoning(parts.reasoning)}
    if parts.content:
        yield {"delta": {"content": parts.content}}


def _reasoning(text: str) -> Fields:
    # under the names that clients of DeepSeek's and of vLLM's servers know
    return dict.fromkeys(("reasoning_content", "reasoning"), text or None)


class Exchange:
    """A request and its rows.

    Args:
        request: what is asked.
        prompts: its prompts, as `Admission.prompts` gives them.
        admission: what the server takes.
        batcher: where the rows will be under way.

    Attributes:
        failure: why the request could not be answered, once that is known.

    Raises:
        ApiError: it is refused.
    """

    def __init__(self, request: GenerationRequest, prompts: list[Prompt], admission: Admission, batcher: Batcher):
        samples = request.n or 1
        chat = isinstance(request, ChatRequest)
        self.request = request
        self.batcher = batcher
        self.rows = [
            Row(
                index=number * samples + sample,
                prompt=prompt.ids,
                sampling=admission.sampling(request, prompt, sample),
                stop=tuple(request.stop or ()),
                tell=self._tell,
                continues=not chat,
            )
            for number, prompt in enumerate(prompts)
            for sample in range(samples)
        ]
        self.unfinished = len(self.rows)
        self.failure: ApiError | None = None
        tokens, schedule = sum(len(prompt.ids) for prompt in prompts), admission.schedule
        cache = CacheUsage(method=admission.method, budget=schedule.budget if schedule else None)
        self.usage = Usage(prompt_tokens=tokens, total_tokens=tokens, dynts=cache)
        markers = admission.chat.format(admission.tokenizer)
        self.form = ChatForm(prompts[0].thinks, markers, admission.watch) if chat else TextForm()
        identity = f"{self.form.identity}-{secrets.token_hex(12)}"
        self._header = {"id": identity, "created": int(time.time()), "model": admission.name}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def begin(cls, request: GenerationRequest, admission: Admission, batcher: Batcher) -> "Exchange":
        """Take a request and put its rows into the queue.

        Args:
            request: what is asked.
            admission: what the server takes.
            batcher: has the queue.

        Raises:
            ApiError: it is refused.
        """
        exchange = cls(request, await asyncio.to_thread(admission.prompts, request), admission, batcher)
        batcher.submit(exchange.rows)
        return exchange

    def cancel(self) -> bool:
        """Give up what is not finished; return whether there was anything."""
        if self.unfinished:
            self.batcher.cancel(self.rows)
        return self.unfinished > 0

    async def whole(self) -> dict[str, Any]:
        """Return the answer, once it is complete.

        Raises:
            ApiError: a row failed.
        """
        texts = [""] * len(self.rows)
        choices: list[dict[str, Any]] = [{} for _ in self.rows]
        async for event in self._coming():
            if isinstance(event, Piece):
                texts[event.index] += event.text
            else:
                reason = event.finish_reason
                fields = self.form.whole(event.index, texts[event.index], reason)
                choices[event.index] = _choice(event.index, fields, reason)
        return self._reply(self.form.whole_object, choices, self.usage)

    async def stream(self) -> AsyncIterator[str]:
        """Yield the answer as server-sent events; an error is one too, for the status is sent already."""
        if self.form.opening is not None:
            for row in self.rows:
                yield self._chunk(_choice(row.index, self.form.opening))
        try:
            async for event in self._coming():
                if isinstance(event, Piece):
                    for fields in self.form.piece(event.index, event.text):
                        yield self._chunk(_choice(event.index, fields))
                else:
                    *held, last = self.form.ending(event.index, event.finish_reason)
                    for fields in held:
                        yield self._chunk(_choice(event.index, fields))
                    yield self._chunk(_choice(event.index, last, event.finish_reason))
        except ApiError as error:
            yield _sent(error.body)
            return
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield self._chunk(usage=self.usage)
        yield "data: [DONE]\n\n"

    def _tell(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever asked
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _coming(self) -> AsyncIterator[Piece | Ended]:
        while self.unfinished:
            event = await self._events.get()
            if isinstance(event, ApiError):
                self.failure = event
                raise event
            if isinstance(event, Ended):
                self.unfinished -= 1
                self._count(event)
            yield event

    def _count(self, ended: Ended) -> None:
        usage, cache = self.usage, self.usage.dynts
        usage.completion_tokens += ended.generated_tokens
        usage.total_tokens += ended.generated_tokens
        cache.compactions += len(ended.cache.compactions)
        cache.evicted_tokens += ended.cache.evicted_tokens
        cache.peak_cached_tokens = max(cache.peak_cached_tokens, ended.cache.peak_tokens)

    def _chunk(self, *choices: dict[str, Any], usage: Usage | None = None) -> str:
        return _sent(self._reply(self.form.chunk_object, list(choices), usage))

    def _reply(self, kind: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        return {**self._header, "object": kind, "choices": choices, "usage": usage and usage.model_dump()}


def _choice(index: int, fields: Fields, reason: FinishReason | None = None) -> dict[str, Any]:
    return {"index": index, **fields, "logprobs": None, "finish_reason": reason}


def _sent(reply: dict[str, Any]) -> str:
    # in ASCII, since to some clients a line ends at U+0085 and U+2028 too
    return f"data: {json.dumps(reply)}\n\n"
