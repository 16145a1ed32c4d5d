"""Are two parsed answers the same? Numbers by their value, collections by their entries, all else by Math-Verify."""

from collections.abc import Sequence
from typing import Any, cast

from latex2sympy2_extended.sets import FiniteSet as Listing
from math_verify import verify
from math_verify.grader import is_equation, is_relation, take_first_relation, take_last_relation
from sympy import (
    Add,
    Basic,
    Expr,
    FiniteSet,
    Float,
    Function,
    I,
    Integer,
    Interval,
    MatrixBase,
    N,
    Number,
    Pow,
    Rational,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    floor,
    log,
    preorder_traversal,
    simplify,
)

_PLACES = 6
_DIGITS = 40
_SAME = Rational(1, 10**30)
"""Relative difference of the same number, computed in two ways with `_DIGITS` digits."""


def same_value(gold: Any, given: Any) -> bool:
    """Say whether what Math-Verify read from the answers is the same.

    A given equation stands for its right side if its left side may be what was asked for; a gold equation, if its left
    side is a name: `x = 5` and `f(2) = 5` are 5, `x + y = 3` is not 3. Numbers are compared exactly, or where one is a
    decimal to six places, smaller ones than 1 to six significant digits.

    Args:
        gold: the gold answer, as it was parsed.
        given: the answer, likewise.

    Raises:
        Exception: whatever SymPy raises on odd input.
    """
    if is_equation(given) and not is_relation(gold):
        left, given = take_first_relation(given).lhs, take_last_relation(given).rhs
        return _is_quantity(left, given) and same_value(gold, given)
    if is_equation(gold) and not is_relation(given):
        left, gold = take_first_relation(gold).lhs, take_last_relation(gold).rhs
        return _is_name(left) and same_value(gold, given)
    if is_equation(gold) and is_equation(given):
        left, other = take_first_relation(gold).lhs, take_first_relation(given).lhs
        right = take_last_relation(gold).rhs
        if _is_name(left) and _is_name(other) and (left == other or _is_number(right)):
            return bool(left == other) and same_value(right, take_last_relation(given).rhs)
    gold, given = _evaluated(gold), _evaluated(given)
    if _is_number(gold) and _is_number(given):
        return _same_number(gold, given)
    return _same_entries(gold, given)


def _same_entries(gold: Any, given: Any) -> bool:
    if isinstance(gold, Interval) and isinstance(given, Interval):
        return (
            (gold.left_open, gold.right_open) == (given.left_open, given.right_open)
            and same_value(gold.start, given.start)
            and same_value(gold.end, given.end)
        )
    if isinstance(gold, MatrixBase) and isinstance(given, MatrixBase):
        return gold.shape == given.shape and _all_same(gold.flat(), given.flat())
    gold_row, given_row = _row(gold), _row(given)
    if gold_row is not None or given_row is not None:
        # x = 1, y = 2 is read as a set, which remembers its order
        gold_row = list(gold._unsorted_args) if isinstance(gold, Listing) else gold_row
        given_row = list(given._unsorted_args) if isinstance(given, Listing) else given_row
        if gold_row is not None and given_row is not None:
            return _all_same(gold_row, given_row)
    elif isinstance(gold, FiniteSet) or isinstance(given, FiniteSet):
        sets = [list(each.args) if isinstance(each, FiniteSet) else [each] for each in (gold, given)]
        if isinstance(gold, Expr | FiniteSet) and isinstance(given, Expr | FiniteSet):
            return _same_set(*sets)
    return _verified(gold, given)


def _all_same(gold: Sequence[Any], given: Sequence[Any]) -> bool:
    return len(gold) == len(given) and all(map(same_value, gold, given))


def _same_set(gold: list[Any], given: list[Any]) -> bool:
    if len(gold) != len(given):
        return False
    for value in gold:
        place = next((place for place, other in enumerate(given) if same_value(value, other)), None)
        if place is None:
            return False
        del given[place]
    return True


def _row(value: Any) -> list[Any] | None:
    """Return the entries of a tuple or vector; (1, 2) is read as an open interval."""
    if isinstance(value, Tuple):
        return list(value.args)
    if isinstance(value, Interval) and value.left_open and value.right_open:
        return [value.start, value.end]
    return value.flat() if isinstance(value, MatrixBase) and 1 in value.shape else None


def _is_name(left: Any) -> bool:
    """Return a symbol, a function's value such as f(2) or P(A), or a tuple of symbols."""
    if isinstance(left, Pow) and left.exp == -1:  # of an inverse function
        left = left.base
    if isinstance(left, Tuple):
        return all(map(_is_name, left.args))
    return isinstance(left, Symbol | Function)


def _is_quantity(left: Any, right: Any) -> bool:
    """Return whether the left side may be what was asked for: 2a + 3b = 7 gives 7, 2x + 3y - 7 = 0 is a line."""
    if _is_name(left):
        return True
    if _is_number(left):
        return same_value(left, right)
    if not isinstance(left, Expr) or any(map(_is_number, Add.make_args(left))):
        return False
    # 0 and 1 are what equations of lines and conics end in
    return not left.has(Number) or not (_is_number(right) and _exact(right) in (0, 1))


def _evaluated(value: Any) -> Any:
    """Return the imaginary unit for the letter i, a matrix for a product with one."""
    if isinstance(value, Expr) and not isinstance(value, MatrixBase):
        if value.is_Matrix:
            return value.doit()
        units = {symbol: I for symbol in value.free_symbols if symbol.name == "i"}
        return value.xreplace(units) if units else value
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Expr) and not value.is_Matrix and value.is_number and not value.free_symbols


def _exact(value: Expr) -> Expr:
    """Return a number without decimals and unevaluated parts."""
    decimals: dict[Basic, Basic] = {decimal: Rational(str(decimal)) for decimal in value.atoms(Float)}
    percent: dict[Basic, Basic] = {each: each.args[0] for each in value.atoms(UnevaluatedExpr)}
    return cast(Expr, value.xreplace(percent).xreplace(decimals).doit())


def _same_number(gold: Expr, given: Expr) -> bool:
    x, y = _exact(gold), _exact(given)
    if x == y or not (x.is_finite and y.is_finite):
        return bool(x == y)
    decimal = gold.has(Float) or given.has(Float)
    exact = bool(x.is_Rational and y.is_Rational)
    if exact and not decimal:
        return False
    if not exact:
        near_x, near_y = N(x, _DIGITS), N(y, _DIGITS)
        size = max(abs(near_x), abs(near_y))
        if size < _SAME:
            return bool(simplify(x - y) == 0)
        if abs(near_x - near_y) <= _SAME * size:
            return True
        x, y = near_x, near_y
    return decimal and bool(abs(x - y) <= _tolerance(max(abs(x), abs(y))))


def _tolerance(size: Expr) -> Expr:
    """Half a unit of the last place that counts."""
    places = _PLACES if size >= 1 else _PLACES - 1 - floor(log(Rational(size), 10))
    return cast(Expr, Rational(1, 2) * Integer(10) ** -places)


def _verified(gold: Any, given: Any) -> bool:
    """Math-Verify's verdict. What it calls equal because all its numbers are tiny is not."""
    sides = [_exact_coefficients(side) for side in (gold, given)]
    same = verify(
        *sides,
        float_rounding=_PLACES,
        numeric_precision=_precision(*sides),
        allow_set_relation_comp=True,
        timeout_seconds=None,
    )
    return bool(same)


def _exact_coefficients(value: Any) -> Any:
    if isinstance(value, Expr) and not value.is_Matrix:
        return value.xreplace({decimal: Rational(str(decimal)) for decimal in value.atoms(Float)})
    return value


def _precision(*values: Any) -> int:
    """Decimal places that tell the smallest number of the values from zero, and its neighbours."""
    places = 15
    for value in values:
        parts = preorder_traversal(value)
        for part in parts:
            if _is_number(part):
                parts.skip()
                size = abs(N(_exact(part), 5))
                if size.is_Float and 0 < size < 1:
                    places = max(places, 16 + int(-log(size, 10)))
    return places
