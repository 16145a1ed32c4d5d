"""Text that arrives in pieces: stop strings are found, and thinking is told from the answer."""

from collections.abc import Iterable
from typing import NamedTuple

from dynts.chat.markers import ThinkFormat


def undecided(text: str, wanted: Iterable[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of the wanted strings, none of which it holds."""
    longest = 0
    for string in wanted:
        for size in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:size]):
                longest = size
                break
    return longest


class StopStrings:
    """Lets text through up to the first stop string.

    Attributes:
        found: whether one has come.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self.strings = strings
        self.found = False
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is certain to come before any stop string."""
        text = self._held + text
        places = [place for place in map(text.find, self.strings) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        certain = len(text) - undecided(text, self.strings)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held


class Parts(NamedTuple):
    """Text of the thinking and of the answer, without the markers."""

    reasoning: str
    content: str


class ReasoningSplit:
    """Splits at the think markers, however they are cut up.

    Thinking begins in the prompt, or with a marker before any other text; what follows its end is the answer, further markers
    included. No space is taken away but that before the opening marker.

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
        """The parts of the text that are certain by now."""
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
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return Parts(held, "") if self.thinks else Parts("", held)

    def whole(self, text: str) -> Parts:
        """The parts of a text that is complete."""
        first, last = self.feed(text), self.flush()
        return Parts(first.reasoning + last.reasoning, first.content + last.content)
