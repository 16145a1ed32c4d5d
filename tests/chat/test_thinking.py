"""Where thinking ends in a text."""

import pytest

from dynts.chat.thinking import answer_of, closes_thinking, split_response

pytestmark = pytest.mark.quick


def test_an_opening_marker_in_the_response_is_dropped() -> None:
    assert split_response("<think>\na</think>b") == ("\na", "b")
    assert split_response("a</think>b") == ("a", "b")


def test_the_answer_is_what_follows_the_last_marker() -> None:
    assert answer_of("a</think>b</think> c") == " c"
    assert answer_of("a</think>") == ""
    assert answer_of("a <think> b") is None
    assert answer_of("a[/THINK]b", "[/THINK]") == "b"
    assert closes_thinking("a</think>")
    assert not closes_thinking("a <think> b</thin")
