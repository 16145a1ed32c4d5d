"""What a cell says, as text."""

from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from dynts.errors import DyntsError
from dynts.store.cells import cell_text, column_text


@pytest.mark.quick
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("007", "007"),
        ("", ""),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (True, "true"),
        (1e-05, "0.00001"),
        (1.6e-19, "0.00000000000000000016"),
        (1e16, "10000000000000000"),
        (-2.5e20, "-250000000000000000000"),
        (0.1, "0.1"),
        (5.0, "5.0"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0E-7"), "0.0000000"),
        (date(2026, 11, 28), "2026-11-28"),
        (datetime(2026, 11, 28, 1, 30), "2026-11-28 01:30:00"),
        ([0.5], "0.5"),
        ([["x"]], "x"),
        (None, None),
        (float("nan"), None),
        (Decimal("NaN"), None),
        ([], None),
        ([None], None),
    ],
)
def test_what_cells_say(value: object, text: str | None) -> None:
    assert cell_text(value, "here") == text


@pytest.mark.quick
def test_every_double_is_written_with_digits_that_give_it_back() -> None:
    for exponent in range(-1074, 1024):
        number = 2.0**exponent
        text = cell_text(number, "here")
        assert text is not None
        assert set(text) <= set("0123456789.")
        assert Fraction(float(text)) == Fraction(number)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1, 2], "row 3 must be one text or number, got a list of 2"),
        ({"value": 1}, "got an object"),
        ([{"value": 1}], "got an object"),
        (b"7", "got bytes"),
        (timedelta(1), "got timedelta"),
        (float("inf"), "row 3 holds the number Infinity, which has no decimals"),
        (Decimal("1E+999999"), r"holds the number 1E\+999999"),
        (Decimal("1E-999999"), "holds the number 1E-999999"),
    ],
)
def test_what_cannot_be_meant_is_refused(value: object, problem: str) -> None:
    with pytest.raises(DyntsError, match=problem):
        cell_text(value, "row 3")


@pytest.mark.quick
def test_columns_that_are_only_kept_may_be_lists() -> None:
    assert column_text([1, Decimal("0.5"), "ä"], "here") == '[1, 0.5, "ä"]'
    assert column_text(Decimal("0.00001"), "here") == "0.00001"
