"""How words, evicted or not, are laid out on terminals of any size and as plain text."""

from io import StringIO

import pytest
from rich.console import Console

from dynts.demo.trace_view import DOT, ShownTrace, final_view, live_view, plain_view

PROMPT = ["<user>", "a=", "3", "find", "b", ".", "<think>"]
LINES = ["b:= a + a , so 6 .", "c:= b - a , done", "</think>", "c= 3 .", "c:= b - a .", r"\boxed{ ( 3 ) }"]
WRITTEN = " ".join(LINES).split()


def traces(evicted: set[int], copies: int = 1) -> list[ShownTrace]:
    words = PROMPT + WRITTEN * copies
    return [
        ShownTrace("full cache", words, len(PROMPT)),
        ShownTrace("compressed", words, len(PROMPT), evicted, "first\nsecond"),
    ]


def test_steps_marker_answers_and_box_begin_lines() -> None:
    trace = traces(set())[0]
    assert [" ".join(trace.words[position] for position in step) for step in trace.steps()] == LINES
    assert ShownTrace("empty", PROMPT, len(PROMPT)).steps() == []


def test_plain_text_shows_the_question_again_when_it_was_evicted_from() -> None:
    text = plain_view(traces({1, 9, 10}))
    assert text.count("question:") == 2
    assert f"question: <user> {DOT} 3 find b . <think>" in text
    assert f"b:= a {DOT} {DOT} , so 6 ." in text
    assert plain_view(traces({9})).count("question:") == 1


@pytest.mark.parametrize("width", [40, 99, 100, 200])
def test_panels_stand_side_by_side_where_there_is_room(width: int) -> None:
    console = Console(file=StringIO(), width=width, height=30)
    for view in (final_view(traces(set()), width), live_view(traces(set()), console)):
        lines = ["".join(segment.text for segment in line) for line in console.render_lines(view)]
        assert max(map(len, lines)) == width
        assert any("full cache" in line and "compressed" in line for line in lines) == (width >= 100)


@pytest.mark.parametrize("width", [20, 60, 120])
@pytest.mark.parametrize("height", [6, 8, 12, 24, 50])
def test_the_live_view_fits_the_terminal_and_ends_with_the_newest_words(width: int, height: int) -> None:
    console = Console(file=StringIO(), width=width, height=height)
    lines = console.render_lines(live_view(traces({1, 9}, copies=40), console))
    assert height - 2 < len(lines) <= height
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert text.count("( 3 ) }") >= 2  # in both panels
    assert "first" in text
    assert "second" not in text


def test_of_a_step_longer_than_the_terminal_the_end_is_shown() -> None:
    console = Console(file=StringIO(), width=60, height=20)
    words = [f"word{number}" for number in range(500)]
    lines = console.render_lines(live_view([ShownTrace("long", words, 0)], console))
    text = "".join(segment.text for line in lines for segment in line)
    assert "word499" in text
    assert "word0 " not in text


def test_the_final_view_has_all_words_and_the_whole_footer() -> None:
    console = Console(file=StringIO(), width=60, force_terminal=True, color_system="standard", highlight=False)
    console.print(final_view(traces({1, 9, 10}), 60))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert output.count("\x1b[2m") == 3
    assert "<user> \x1b[2ma=\x1b[0m 3 find" in output
    assert "b:= a \x1b[2m+\x1b[0m \x1b[2ma\x1b[0m , so" in output
    assert "second" in output
    assert all(output.count(line) == 2 for line in LINES[1:])
