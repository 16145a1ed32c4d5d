"""Where thinking ends in a text; in token ids, `dynts.chat.scanner` finds it. Light: every grader imports it.

Stored responses are in dynts' form: they begin within the thinking, and END closes it.
"""

from typing import NamedTuple

from dynts.chat.markers import END, START, ThinkFormat
from dynts.chat.streaming import undecided


def closes_thinking(response: str) -> bool:
    """Return whether a response, in dynts' form, has ended its thinking, so that there is an answer."""
    return END in response


def answer_of(response: str, end: str = END) -> str | None:
    """Return the text after the last closing marker; None where the thinking never ends.

    Args:
        response: what the model wrote.
        end: the closing marker.
    """
    _, closed, answer = response.rpartition(end)
    return answer if closed else None


def split_response(response: str, start: str = START, end: str = END) -> tuple[str, str]:
    """Return the text before and after the first closing marker; an opening marker at the very start is dropped.

    Args:
        response: what the model wrote.
        start: the opening marker.
        end: the closing one.
    """
    thinking, _, answer = response.partition(end)
    if thinking.lstrip().startswith(start):
        thinking = thinking.lstrip().removeprefix(start)
    return thinking, answer


def normalise(response: str, markers: ThinkFormat, thinks: bool | None = None) -> str:
    """Return the response from just after the opening marker, with dynts' own closing marker.

    A response that starts inside the thinking (DeepSeek-R1 opens it in the prompt) stays as it is. Only the opening
    marker at the very start is dropped: further markers are left for the filters to find.

    Args:
        response: what the model wrote.
        markers: how it writes its markers.
        thinks: as in `dynts.chat.prompts.ChatPrompt`: False says that the prompt has closed the thinking, and all is
            the answer.
    """
    start = response.lstrip()
    if start.startswith(markers.start):
        response = start.removeprefix(markers.start)
    if markers.start != START:
        response = response.replace(markers.start, START)
    response = response if markers.end == END else response.replace(markers.end, END)
    return f"{END}{response}" if thinks is False else response


class Parts(NamedTuple):
    """Text of the thinking and of the answer, without the markers."""

    reasoning: str
    content: str


class ReasoningSplit:
    """Splits at the think markers, however they are cut up.

    Thinking begins in the prompt, or with a marker before any other text; what follows its end is the answer, further
    markers included. No space is taken away but that before the opening marker.

    Args:
        thinks: whether the prompt ends within the thinking, see `dynts.chat.prompts.ChatPrompt`.
        format: the markers.

    Attributes:
        thinks: whether what comes next is thinking; None while that is open.
        closed: whether the thinking was ended, in the prompt or here.
    """

    def __init__(self, thinks: bool | None, format: ThinkFormat) -> None:
        self.thinks = thinks
        self.closed = thinks is False
        self.format = format
        self._held = ""

    def feed(self, text: str) -> Parts:
        """Return the parts of the text that are certain by now."""
        text, self._held = self._held + text, ""
        if self.thinks is None:
            begun, start = text.lstrip(), self.format.start
            if begun != start and start.startswith(begun):  # or it is empty
                self._held = text
                return Parts("", "")
            self.thinks = begun.startswith(start)
            text = begun[len(start) :] if self.thinks else text
        if not self.thinks:
            return Parts("", text)
        reasoning, end, content = text.partition(self.format.end)
        if end:
            self.thinks, self.closed = False, True
            return Parts(reasoning, content)
        certain = len(text) - undecided(text, (self.format.end,))
        self._held = text[certain:]
        return Parts(text[:certain], "")

    def flush(self) -> Parts:
        """Return what was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return Parts(held, "") if self.thinks else Parts("", held)

    def whole(self, text: str) -> Parts:
        """Return the parts of a text that is complete."""
        first, last = self.feed(text), self.flush()
        return Parts(first.reasoning + last.reasoning, first.content + last.content)
