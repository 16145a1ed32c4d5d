"""Bring responses into dynts' form: from just after the opening think marker, with one closing marker `</think>`."""

from dataclasses import dataclass

from dynts.errors import DyntsError
from dynts.markers import END, START


@dataclass(frozen=True, slots=True)
class Markers:
    """How a model writes its think markers, as text; a marker may be several tokens.

    Args:
        start: opens the thinking.
        end: closes it.

    Raises:
        DyntsError: a marker is empty, or both are the same.
    """

    start: str = START
    end: str = END

    def __post_init__(self) -> None:
        if not self.start.strip() or not self.end.strip() or self.start == self.end:
            raise DyntsError(f"think markers must be two different texts, got {self.start!r} and {self.end!r}")


def normalise(response: str, markers: Markers) -> str:
    """The response from just after the opening marker, with dynts' own closing marker.

    A response that starts inside the thinking (DeepSeek-R1 opens it in the prompt) stays as it is. Only the opening marker
    at the very start is dropped: further markers are left for the filters to find.

    Args:
        response: what the model wrote.
        markers: how it writes its markers.
    """
    start = response.lstrip()
    if start.startswith(markers.start):
        response = start.removeprefix(markers.start)
    if markers.start != START:
        response = response.replace(markers.start, START)
    return response if markers.end == END else response.replace(markers.end, END)
