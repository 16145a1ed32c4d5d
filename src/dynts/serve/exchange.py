"""One request and its answer, while its rows are under way."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from dynts.chat.prompts import Prompt
from dynts.serve.admission import Admission
from dynts.serve.batching import Batcher
from dynts.serve.completion import Ended, Event, Piece, Row
from dynts.serve.errors import ApiError
from dynts.serve.protocol import CacheUsage, ChatRequest, FinishReason, GenerationRequest, Reply, Usage
from dynts.serve.replies import ChatShape, CompletionShape, ReplyShape


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
        identity = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        header = {"id": identity, "created": int(time.time()), "model": admission.name}
        self.shape: ReplyShape = (
            ChatShape(header, prompts[0].thinks, admission.chat.format(admission.tokenizer), admission.watch)
            if chat
            else CompletionShape(header)
        )
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> bool:
        """Give up what is not finished; whether there was anything."""
        if self.unfinished:
            self.batcher.cancel(self.rows)
        return self.unfinished > 0

    async def whole(self) -> Reply:
        """The answer, once it is complete.

        Raises:
            ApiError: a row failed.
        """
        texts = [""] * len(self.rows)
        reasons: list[FinishReason] = ["length"] * len(self.rows)
        async for event in self._coming():
            if isinstance(event, Piece):
                texts[event.index] += event.text
            else:
                reasons[event.index] = event.finish_reason
        return self.shape.whole(texts, reasons, self.usage)

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events. An error that comes now is an event too: the status is sent already."""
        for reply in self.shape.opening(len(self.rows)):
            yield _sent(reply)
        try:
            async for event in self._coming():
                if isinstance(event, Piece):
                    replies = self.shape.piece(event.index, event.text)
                else:
                    replies = self.shape.ending(event.index, event.finish_reason)
                for reply in replies:
                    yield _sent(reply)
        except ApiError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
            return
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield _sent(self.shape.usage(self.usage))
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
        cache.compactions += ended.cache.compactions
        cache.evicted_tokens += ended.cache.evicted_tokens
        cache.peak_cached_tokens = max(cache.peak_cached_tokens, ended.cache.peak_tokens)


async def begin(request: GenerationRequest, admission: Admission, batcher: Batcher) -> Exchange:
    """Take a request and put its rows into the queue.

    Raises:
        ApiError: it is refused.
    """
    prompts = await asyncio.to_thread(admission.prompts, request)
    exchange = Exchange(request, prompts, admission, batcher)
    batcher.submit(exchange.rows)
    return exchange


def _sent(reply: Reply) -> str:
    return f"data: {reply.model_dump_json()}\n\n"
