"""Bring responses into dynts' form: from just after the opening think marker, with one closing marker `</think>`."""

from dynts.markers import END, START, ThinkFormat


def normalise(response: str, markers: ThinkFormat, thinks: bool | None = None) -> str:
    """The response from just after the opening marker, with dynts' own closing marker.

    A response that starts inside the thinking (DeepSeek-R1 opens it in the prompt) stays as it is. Only the opening marker
    at the very start is dropped: further markers are left for the filters to find.

    Args:
        response: what the model wrote.
        markers: how it writes its markers.
        thinks: as in `dynts.prompts.ChatPrompt`: False says that the prompt has closed the thinking, and all is the answer.
    """
    start = response.lstrip()
    if start.startswith(markers.start):
        response = start.removeprefix(markers.start)
    if markers.start != START:
        response = response.replace(markers.start, START)
    response = response if markers.end == END else response.replace(markers.end, END)
    return f"{END}{response}" if thinks is False else response
