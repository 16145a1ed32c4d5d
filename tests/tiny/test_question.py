"""Questions that users type for the embedded model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynts.errors import DyntsError
from dynts.tiny.question import parse_question
from dynts.tiny.task import HELD_OUT, make_problem

SEEDS = st.integers(HELD_OUT[0], HELD_OUT[-1])
FACTS = "a=3, b=5, c:=a+b, d:=c-a"


def test_the_answer_is_computed_and_the_spacing_normalised() -> None:
    problem = parse_question("  b=5,d := a -c , a= 3,\n c:=a+b find d c")
    assert problem.question == "b= 5 , d:= a - c , a= 3 , c:= a + b find d? c? ."
    assert problem.answer == "( 5 , 8 )"
    assert problem.warning is None


@given(seed=SEEDS, steps=st.integers(2, 12))
def test_problems_of_the_task_are_read_as_they_are(seed: int, steps: int) -> None:
    problem = make_problem(seed, range(steps, steps + 1))
    read = parse_question(problem.question)
    assert (read.question, read.answer, read.warning) == (problem.question, problem.answer, None)


@given(seed=SEEDS, data=st.data())
def test_order_spaces_and_the_dot_do_not_matter(seed: int, data: st.DataObject) -> None:
    problem = make_problem(seed)
    facts, asked = problem.question.replace(" ", "").removesuffix(".").split("find")
    shuffled = data.draw(st.permutations(facts.split(",")))
    read = parse_question(f"{','.join(shuffled)} find {asked}")
    assert (read.answer, read.warning) == (problem.answer, None)
    assert parse_question(read.question) == read


@given(seed=SEEDS)
def test_a_number_is_a_held_out_problem(seed: int) -> None:
    problem = make_problem(seed)
    read = parse_question(f" {seed} ")
    assert (read.question, read.answer, read.warning) == (problem.question, problem.answer, None)


@pytest.mark.parametrize("number", [-1, HELD_OUT.stop, 10**15])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(DyntsError, match=f"problem {number}: they are numbered 0 to 99999"):
        parse_question(str(number))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "end it with"),
        ("1" * 5000, "end it with"),
        (FACTS, "end it with"),
        (f"{FACTS} find", "nothing stands after 'find'"),
        (f"{FACTS} find .", "nothing stands after 'find'"),
        (f"{FACTS} find e.", "cannot find 'e': the question sets a, b, c, d"),
        (f"{FACTS} find c and d.", "cannot find 'and'"),
        (f"{FACTS} find c, d, c.", "c is to be found twice"),
        (f"{FACTS} find c find d.", "cannot read 'd:=c-a find c'"),
        ("find a.", "the question sets nothing"),
        ("a=3, b=12, c:=a+b find c.", "cannot read 'b=12'"),
        ("a=3, b=-1, c:=a+b find c.", "cannot read 'b=-1'"),
        ("a=3, b=5, c:=a*b find c.", "cannot read 'c:=a[*]b'"),
        ("a=3, b=5, c:=a+5 find c.", "cannot read 'c:=a[+]5'"),
        ("a=3, b=5, c=a+b find c.", "cannot read 'c=a[+]b'"),
        ("a=3 b=5, c:=a+b find c.", "cannot read 'a=3 b=5'"),
        ("A=3, b=5, c:=a+b find c.", "cannot read 'A=3'"),
        ("a=3, hello, c:=a+b find c.", "cannot read 'hello'"),
        ("a=3, q=5, c:=a+b find c.", "'q' in 'q=5' .* use a to p"),
        ("a=3, b=5, c:=a+z find c.", "'z' in 'c:=a[+]z' .* use a to p"),
        ("a=3, a=4, c:=a+b find c.", "a is set twice, the second time by 'a=4'"),
        ("a=3, b=5, b:=a+c find c.", "b is set twice"),
        ("a=3, c:=a+b find c.", "c needs b, which has no value: add a fact such as b=3"),
        ("a=3, b:=a+c, c:=a+a find c.", "b needs c: .* earlier letters only"),
        ("a=3, b:=a+b find b.", "b needs b: .* earlier letters only"),
        ("c:=a+b, b:=a+c, a=1 find c.", "b needs c: .* earlier letters only"),
    ],
)
def test_questions_without_an_answer_are_refused(text: str, message: str) -> None:
    with pytest.raises(DyntsError, match=message):
        parse_question(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a=3 find a.", "( 3 )"),  # no definitions
        ("a=3, b=5, c:=a+b find c.", "( 8 )"),  # one definition
        ("a=3, b:=a+a, c:=a+b find b, c.", "( 6 , 9 )"),  # one value, an operand twice
        ("a=3, c=5, d:=a-c, e:=a+d find d, e.", "( 8 , 1 )"),  # a letter left out
        ("a=3, b=5, c:=a+b, d=1, e:=d-c find c, e.", "( 8 , 3 )"),  # a value after a definition
        (f"{FACTS} find c.", "( 8 )"),  # too few asked for
        (f"{FACTS} find c, a.", "( 8 , 3 )"),  # a value asked for
        (f"{FACTS}, e:=d+a, f:=e-a find c, d, e, f, a.", "( 8 , 5 , 8 , 5 , 3 )"),  # too many asked for
    ],
)
def test_shapes_without_training_are_answered_with_a_warning(text: str, answer: str) -> None:
    problem = parse_question(text)
    assert problem.answer == answer
    assert problem.warning is not None
    assert "has not been trained" in problem.warning
