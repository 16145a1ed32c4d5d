"""Is the answer right? The table of cases, and what counts as the boxed answer."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynts.grading.boxed import last_boxed
from dynts.grading.compare import _verify, is_correct, is_response_correct, same_answer
from dynts.grading.normalize import as_whole_numbers

TABLE = Path(__file__).parent / "grading_cases.json"
CASES: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_case_of_the_table(case: dict[str, Any]) -> None:
    verdict = is_response_correct(case["output"], case["gold"])
    known_limit = case.get("known_limit")
    assert verdict is (case["expected"] if known_limit is None else known_limit["actual"])
    # a limit that is gone must leave the table and the docs
    assert known_limit is None or known_limit["actual"] is not case["expected"]


def test_the_table_has_enough_of_every_verdict() -> None:
    assert len(CASES) >= 150
    assert len({case["id"] for case in CASES}) == len(CASES)
    for verdict in (True, False, None):
        assert sum(case["expected"] is verdict for case in CASES) >= 10


def test_the_docs_list_the_known_limits() -> None:
    page = (Path(__file__).parents[1] / "docs" / "grading.md").read_text(encoding="utf-8")
    limits = [case["id"] for case in CASES if "known_limit" in case]
    assert [name for name in limits if f"| {name} |" not in page] == []
    assert f"The other {len(CASES) - len(limits)} cases" in page
    assert f"holds {len(CASES)} cases" in page


DATA = Path(__file__).parents[1] / "../shared/data/benchmarks"


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

    monkeypatch.setattr("math_verify.verify", broken)
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 12), min_size=2, max_size=4), st.data())
def test_tuples_are_compared_as_math_verify_compares_them(gold: list[int], data: st.DataObject) -> None:
    others = st.lists(st.integers(-3, 12), min_size=2, max_size=4) | st.permutations(gold)
    given_text = "( " + " , ".join(map(str, data.draw(others))) + " )"
    gold_text = "(" + ",".join(map(str, gold)) + ")"
    assert same_answer(given_text, gold_text) == _verify(given_text, gold_text)
