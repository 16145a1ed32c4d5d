"""Stop strings in text that arrives in pieces."""

from collections.abc import Iterable


def undecided(text: str, wanted: Iterable[str]) -> int:
    """Return how many characters at the end of a text may begin a wanted string.

    Args:
        text: as far as it came; it holds none of the strings.
        wanted: the strings.
    """
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
        """Return the text that is certain to come before any stop string."""
        text = self._held + text
        places = [place for place in map(text.find, self.strings) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        certain = len(text) - undecided(text, self.strings)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """Return what was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held
