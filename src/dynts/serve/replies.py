"""Shapes what the rows of a request wrote as OpenAI's API does: whole, or piece by piece."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from dynts.chat.markers import ThinkFormat
from dynts.chat.thinking import Parts, ReasoningSplit
from dynts.chat.written import ClosingWatch
from dynts.serve.protocol import (
    ChatChoice,
    ChatChunkChoice,
    CompletionChoice,
    Delta,
    FinishReason,
    Reply,
    ReplyMessage,
    Usage,
)


class ReplyShape(ABC):
    """The form of an endpoint's replies.

    Args:
        header: id, time of creation and model, the same in all of a request's replies.
    """

    whole_object: str
    chunk_object: str

    def __init__(self, header: dict[str, Any]) -> None:
        self.header = header

    def whole(self, texts: Sequence[str], reasons: Sequence[FinishReason], usage: Usage) -> Reply:
        """All completions at once."""
        choices = [
            self.choice(index, text, reason) for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return Reply(**self.header, object=self.whole_object, choices=choices, usage=usage)

    def opening(self, completions: int) -> Iterator[Reply]:
        """What a stream begins with."""
        yield from ()

    def piece(self, index: int, text: str) -> Iterator[Reply]:
        """More text of a completion."""
        for choice in self.pieces(index, text):
            yield self._chunk([choice])

    @abstractmethod
    def ending(self, index: int, reason: FinishReason) -> Iterator[Reply]:
        """The end of a completion."""

    def usage(self, usage: Usage) -> Reply:
        """What a stream ends with, if it is to say what it cost."""
        return self._chunk([], usage)

    @abstractmethod
    def choice(self, index: int, text: str, reason: FinishReason) -> Any:
        """A whole completion."""

    @abstractmethod
    def pieces(self, index: int, text: str) -> Iterator[Any]:
        """The choices of chunks for more text."""

    def _chunk(self, choices: list[Any], usage: Usage | None = None) -> Reply:
        return Reply(**self.header, object=self.chunk_object, choices=choices, usage=usage)


class CompletionShape(ReplyShape):
    """/v1/completions: the text as the model wrote it, think markers included."""

    whole_object = chunk_object = "text_completion"

    def ending(self, index: int, reason: FinishReason) -> Iterator[Reply]:
        """A chunk without text."""
        yield self._chunk([CompletionChoice(index=index, text="", finish_reason=reason)])

    def choice(self, index: int, text: str, reason: FinishReason) -> CompletionChoice:
        """A whole completion."""
        return CompletionChoice(index=index, text=text, finish_reason=reason)

    def pieces(self, index: int, text: str) -> Iterator[CompletionChoice]:
        """The text as it is."""
        yield CompletionChoice(index=index, text=text)


class ChatShape(ReplyShape):
    """/v1/chat/completions: thinking and answer apart.

    Args:
        thinks: whether the prompt ends within the thinking, see `dynts.chat.prompts.ChatPrompt`.
        format: how the model writes its think markers.
        watch: told of every answer.
    """

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, header: dict[str, Any], thinks: bool | None, format: ThinkFormat, watch: ClosingWatch) -> None:
        super().__init__(header)
        self.thinks = thinks
        self.format = format
        self.watch = watch
        self._splits: dict[int, ReasoningSplit] = {}

    def opening(self, completions: int) -> Iterator[Reply]:
        """Says who speaks, at once: a batch may have to be waited for."""
        for index in range(completions):
            self._splits[index] = ReasoningSplit(self.thinks, self.format)
            yield self._chunk([ChatChunkChoice(index=index, delta=Delta(role="assistant", content=""))])

    def ending(self, index: int, reason: FinishReason) -> Iterator[Reply]:
        """What the split held back, and the reason."""
        split = self._splits[index]
        self.watch.note(reason == "stop", split.closed)
        for delta in _deltas(split.flush()):
            yield self._chunk([ChatChunkChoice(index=index, delta=delta)])
        yield self._chunk([ChatChunkChoice(index=index, delta=Delta(), finish_reason=reason)])

    def choice(self, index: int, text: str, reason: FinishReason) -> ChatChoice:
        """A whole answer."""
        split = ReasoningSplit(self.thinks, self.format)
        reasoning, content = split.whole(text)
        self.watch.note(reason == "stop", split.closed)
        message = ReplyMessage(content=content, reasoning_content=reasoning or None)
        return ChatChoice(index=index, message=message, finish_reason=reason)

    def pieces(self, index: int, text: str) -> Iterator[ChatChunkChoice]:
        """What is certain of the thinking, then of the answer."""
        for delta in _deltas(self._splits[index].feed(text)):
            yield ChatChunkChoice(index=index, delta=delta)


def _deltas(parts: Parts) -> Iterator[Delta]:
    if parts.reasoning:
        yield Delta(reasoning_content=parts.reasoning)
    if parts.content:
        yield Delta(content=parts.content)
