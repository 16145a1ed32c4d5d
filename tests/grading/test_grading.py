"""Is the answer right? The table of cases, and what counts as the boxed answer."""

import json
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynts.grading.boxed import last_boxed
from dynts.grading.compare import _verify, is_correct, is_response_correct, same_answer
from dynts.grading.normalize import as_whole_numbers
from shared_data import BENCHMARKS as DATA

TABLE = Path(__file__).parent / "grading_cases.json"
CASES: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_of_the_table(case: dict[str, Any]) -> None:
    verdict = is_response_correct(case["output"], case["gold"])
    known_limit = case.get("known_limit")
    assert verdict is (case["expected"] if known_limit is None else known_limit["actual"])
    # a limit that is gone must leave the table and the docs
    assert known_limit is None or known_limit["actual"] is not case["expected"]


SWAPPED = [case for case in CASES if "swapped" in case]


@pytest.mark.parametrize("case", SWAPPED, ids=lambda case: case["id"])
def test_a_case_with_gold_and_answer_exchanged(case: dict[str, Any]) -> None:
    given = last_boxed(case["output"])
    assert given is not None
    assert is_correct(f"\\boxed{{{case['gold']}}}", given) is case["swapped"]


def test_the_table_has_enough_of_every_verdict() -> None:
    assert len(CASES) >= 500
    assert len({case["id"] for case in CASES}) == len(CASES)
    for verdict in (True, False, None):
        assert sum(case["expected"] is verdict for case in CASES) >= 10


def test_the_docs_list_the_known_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "grading.md").read_text(encoding="utf-8")
    limits = [case["id"] for case in CASES if "known_limit" in case]
    assert [name for name in limits if f"| {name} |" not in page] == []
    assert f"The other {len(CASES) - len(limits)} cases" in page
    assert f"holds {len(CASES)} cases" in page


@pytest.mark.skipif(not DATA.exists(), reason="the shared benchmarks are not beside this checkout")
def test_the_gold_answers_of_the_table_are_real() -> None:
    rows = [json.loads(line) for path in DATA.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()]
    answers = {row["id"]: row["answer"] for row in rows}
    sourced = [case for case in CASES if case["source"] != "invented"]
    assert len(sourced) >= 150
    assert [case["id"] for case in sourced if answers[case["source"]] != case["gold"]] == []


@pytest.mark.skipif(not DATA.exists(), reason="the shared benchmarks are not beside this checkout")
@pytest.mark.parametrize("name", ["math500", "gaokao2023en", "amc23", "aime24", "aime25"])
def test_every_gold_answer_equals_itself(name: str) -> None:
    rows = [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text("utf-8").splitlines()]
    wrong = [row["id"] for row in rows if not is_correct(f"\\boxed{{{row['answer'].strip('$')}}}", row["answer"])]
    # two rows of GK23EN have no answer
    assert wrong == (["gaokao2023en-167", "gaokao2023en-192"] if name == "gaokao2023en" else [])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"\boxed 1,250. Done", "1,250"),
        (r"\boxed C.", "C"),
        (r"$\boxed\frac12$", r"\frac12"),
        (r"$\boxed\frac{1}{23}x$", r"\frac{1}{23}x"),
        (r"$\boxed -3\sqrt[3]{2}$.", r"-3\sqrt[3]{2}"),
        (r"$\boxed x^2$ is it", "x^2"),
        (r"\boxed\pi a circle", r"\pi"),
        (r"\boxed\textbf{(B)} is right", r"\textbf{(B)}"),
        (r"\boxed\frac1", None),
        (r"\boxed\frac{1}{2", None),
        (r"\boxed is what", None),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed{1} but no: \boxed{2}", "2"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{3} and \boxed{5}", "3, 5"),
        (r"$\boxed{3}$, $\boxed{4}$, and $\boxed{5}$", "3, 4, 5"),
        (r"\(x = \boxed{3}\) or \(x = \boxed{5}\)", "3, 5"),
        (r"\boxed{2} so it is \boxed{3} and \boxed{5}", "3, 5"),
        (r"\boxed{3}, \boxed{3}", "3"),
        (r"\boxed{7} is my answer in \boxed{}", "7"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed", None),
        (r"\boxedtext{5}", None),
        ("5", None),
        (r"\boxed{12", None),
        (r"\boxed{3} better \boxed{\frac{1}{2}", None),
    ],
)
def test_the_last_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_what_follows_the_box_does_not_matter() -> None:
    assert is_correct(r"\boxed{18}. The final answer is $6$. I hope it is correct.", "18") is True


def test_grading_works_outside_the_main_thread() -> None:
    found: list[bool | None] = []
    thread = threading.Thread(target=lambda: found.append(is_correct(r"\boxed{x + 1}", "1 + x")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_comparison_that_raises_means_ungradable(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> bool:
        raise RecursionError

    monkeypatch.setattr("dynts.grading.values.verify", broken)
    assert is_correct(r"\boxed{x + 1}", "1 + x") is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234", (1234,)),
        ("( 7 , 9 , -7 )", (7, 9, -7)),
        ("(1, 234)", (1, 234)),
        ("(1,2345)", (1, 2345)),
        ("(1,234)", None),
        ("(12,34,567)", None),
        ("(7)", None),
        ("[1,2]", None),
        ("(1,2", None),
        ("(1.5,2)", None),
        ("(a,2)", None),
    ],
)
def test_what_is_read_as_whole_numbers(text: str, numbers: tuple[int, ...] | None) -> None:
    assert as_whole_numbers(text) == numbers


def repeating_decimal(value: Fraction) -> str:
    """By long division: the digits from the first remainder that comes again are the period."""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    digits, seen = "", dict[int, int]()
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    start = seen[rest] if rest else len(digits)
    period = f"\\overline{{{digits[start:]}}}" if rest else ""
    return f"{'-' * (value < 0)}{whole}.{digits[:start]}{period}" if digits else f"{'-' * (value < 0)}{whole}"


def spellings(value: Fraction) -> list[str]:
    """One number as models and books write it."""
    sign, size, over = "-" * (value < 0), abs(value), value.denominator
    whole, rest = divmod(size.numerator, over)
    found = [f"{sign}\\frac{{{size.numerator}}}{{{over}}}", f"{value}", repeating_decimal(value), f"x = {value}"]
    found += [
        f"{repeating_decimal(value * 100)}\\%",
        f"{sign}\\dfrac{{{3 * size.numerator}}}{{{3 * over}}} \\text{{ cm}}",
    ]
    found += [
        f"{sign}\\frac{{{size.numerator}}}{{{over}}}".translate(str.maketrans("0123456789", "０１２３４５６７８９"))
    ]
    if whole and rest:
        found += [f"{sign}{whole}\\frac{{{rest}}}{{{over}}}", f"{sign}{whole} {rest}/{over}"]
    tiny = value / 10**30
    return [*found, f"\\frac{{{tiny.numerator}}}{{{tiny.denominator}}} \\cdot 10^{{30}}"]


RATIONALS = st.fractions(-20, 20, max_denominator=37)


@settings(max_examples=40, deadline=None)
@given(RATIONALS, RATIONALS | st.none(), st.data())
def test_numbers_are_compared_by_value_however_they_are_written(
    gold: Fraction, other: Fraction | None, data: st.DataObject
) -> None:
    value = gold if other is None else other
    given_text, gold_text = (data.draw(st.sampled_from(spellings(each))) for each in (value, gold))
    if value != gold and "%" in given_text + gold_text:
        return  # whose sign may be left out
    assert same_answer(given_text, gold_text) is (value == gold)


@pytest.mark.parametrize(("size", "digits"), [(-19, 6), (-19, 5), (-300, 6), (-300, 5), (40, 30)])
def test_numbers_of_any_size_differ_from_their_neighbours(size: int, digits: int) -> None:
    """A difference beyond the sixth significant digit does not count for small decimals, one before it does."""
    written = f"1.{'0' * (digits - 1)}1\\times 10^{{{size}}}"
    assert same_answer(written, f"1.0\\times 10^{{{size}}}") is (size < 0 and digits > 5)
    assert same_answer(f"10^{{{size}}}", f"10^{{{size - 1}}}") is False


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 12), min_size=2, max_size=4), st.data())
def test_tuples_are_compared_as_math_verify_compares_them(gold: list[int], data: st.DataObject) -> None:
    others = st.lists(st.integers(-3, 12), min_size=2, max_size=4) | st.permutations(gold)
    given_text = "( " + " , ".join(map(str, data.draw(others))) + " )"
    gold_text = "(" + ",".join(map(str, gold)) + ")"
    assert same_answer(given_text, gold_text) == _verify(given_text, gold_text)
