"""The configuration: every wrong value is named, and the schedule is what the paper's formula says."""

import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynts
from dynts import CompressionConfig, DyntsError


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 1, "local_window": 0}, ["budget", "at least 2", "1"]),
        ({"budget": 0, "local_window": 0}, ["budget", "at least 2", "0"]),
        ({"budget": -5, "local_window": 0}, ["budget", "-5"]),
        ({"budget": 10.0, "local_window": 2}, ["budget", "whole number", "10.0"]),
        ({"budget": "10", "local_window": 2}, ["budget", "whole number", "'10'"]),
        ({"budget": None, "local_window": 2}, ["budget", "whole number", "None"]),
        ({"budget": True, "local_window": 0}, ["budget", "whole number", "True"]),
        ({"budget": 10, "local_window": -1}, ["local_window", "at least 0", "-1"]),
        ({"budget": 10, "local_window": 10}, ["local_window", "(10)", "smaller than the budget"]),
        ({"budget": 10, "local_window": 11}, ["local_window", "(11)", "budget (10)"]),
        ({"budget": 10, "local_window": 2.5}, ["local_window", "whole number", "2.5"]),
        ({"budget": 10, "local_window": False}, ["local_window", "whole number", "False"]),
        ({"budget": 1000}, ["local_window (2000)", "budget (1000)"]),
        ({"retention_ratio": 0.0}, ["retention_ratio", "0.0"]),
        ({"retention_ratio": 1.0}, ["retention_ratio", "1.0"]),
        ({"retention_ratio": 0}, ["retention_ratio", "between 0 and 1", "0"]),
        ({"retention_ratio": 1}, ["retention_ratio", "between 0 and 1", "1"]),
        ({"retention_ratio": -0.4}, ["retention_ratio", "-0.4"]),
        ({"retention_ratio": 40}, ["retention_ratio", "40"]),
        ({"retention_ratio": math.nan}, ["retention_ratio", "nan"]),
        ({"retention_ratio": math.inf}, ["retention_ratio", "inf"]),
        ({"retention_ratio": "0.4"}, ["retention_ratio", "'0.4'"]),
        ({"retention_ratio": True}, ["retention_ratio", "True"]),
        ({"retention_ratio": None}, ["retention_ratio", "None"]),
    ],
)
def test_wrong_values_are_named(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DyntsError) as caught:
        CompressionConfig(**settings)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.quick
def test_defaults_are_published_ones_and_fixed() -> None:
    config = CompressionConfig()
    assert (config.budget, config.local_window, config.retention_ratio) == (5000, 2000, 0.4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.budget = 1  # type: ignore[misc]
    assert dynts.CompressionConfig(budget=2, local_window=0, retention_ratio=0.5).budget == 2


@pytest.mark.quick
@pytest.mark.parametrize(
    ("budget", "window", "ratio", "question", "selected", "kept"),
    [
        # 0.4 * (5000 - 2000 - 200) = 1120; 200 + 1120 + 2000
        (5000, 2000, 0.4, 200, 1120, 3320),
        # 0.3 * (5000 - 2500 - 333) = 650.1
        (5000, 2500, 0.3, 333, 650, 3483),
        # 0.3 * (3000 - 1000 - 150) = 555; 150 + 555 + 1000
        (3000, 1000, 0.3, 150, 555, 1705),
        # 0.4 * (44 - 9 - 11) = 9.6
        (44, 9, 0.4, 11, 9, 29),
        (20, 0, 0.5, 1, 9, 10),
        (10, 3, 0.9, 5, 1, 9),
        # a question of 6 leaves one token of room: 0.9 of it is none
        (10, 3, 0.9, 6, 0, 9),
    ],
)
def test_kept_tokens_by_hand(budget: int, window: int, ratio: float, question: int, selected: int, kept: int) -> None:
    config = CompressionConfig(budget, window, ratio)
    assert config.selected_tokens(question) == selected
    assert config.kept_tokens(question) == kept


RATIOS = st.one_of(
    st.floats(1e-3, 0.999),
    # reciprocals of whole numbers, where the smallest room falls on a whole number
    st.integers(2, 200).map(lambda parts: 1 / parts),
    st.integers(1, 99).map(lambda percent: percent / 100),
)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 60), RATIOS)
def test_an_accepted_question_leaves_room_after_every_compaction(
    room: int, window: int, question: int, ratio: float
) -> None:
    config = CompressionConfig(question + window + room, window, ratio)
    try:
        config.check_question(question)
    except DyntsError:
        assert config.selected_tokens(question) < 1
        return
    assert question + window + 1 <= config.kept_tokens(question) < config.budget


def named_budget(config: CompressionConfig, question: int) -> int:
    """The budget that the refusal of a question asks for."""
    with pytest.raises(DyntsError) as caught:
        config.check_question(question)
    message = str(caught.value)
    for value in (config.budget, question, config.local_window, config.retention_ratio):
        assert str(value) in message
    found = re.search(r"a budget of at least (\d+)", message)
    assert found is not None
    return int(found.group(1))


@given(st.integers(0, 3000), st.integers(1, 5000), RATIOS)
def test_the_named_budget_is_accepted_and_the_smallest(window: int, question: int, ratio: float) -> None:
    named = named_budget(CompressionConfig(window + 2, window, ratio), question)
    CompressionConfig(named, window, ratio).check_question(question)
    with pytest.raises(DyntsError, match=rf"at least {named}\b"):
        CompressionConfig(named - 1, window, ratio).check_question(question)


@pytest.mark.quick
@pytest.mark.parametrize("parts", [3, 10, 49, 161, 187])
def test_the_named_budget_is_accepted_where_rounding_matters(parts: int) -> None:
    # in floating point 1 / (1 / 161) is 161, but 161 * (1 / 161) is less than 1; with 49 it is the other way round
    named = named_budget(CompressionConfig(16, 5, 1 / parts), 11)
    CompressionConfig(named, 5, 1 / parts).check_question(11)
